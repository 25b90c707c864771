"""Everything `pg2ref doctor` finds, as one object, and as lines for people."""

import platform
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from pg2ref.benchmark.report import cpu_name
from pg2ref.checkpoint.locate import CONFIG_NAME
from pg2ref.checkpoint.manifest import read_manifest
from pg2ref.checkpoint.shards import weight_files
from pg2ref.config import parse_config, read_json_object
from pg2ref.doctor.kernel_cache import kept_kernels
from pg2ref.doctor.machine import read_memory, usable_cpus
from pg2ref.doctor.memory_need import PRECISIONS, TEXT_TOKENS, need, verdict
from pg2ref.errors import CheckpointError
from pg2ref.hub.cache import cached_models, hub_cache_folder, unfinished_bytes
from pg2ref.model.backend import choose_precision
from pg2ref.outputs.result import versions
from pg2ref.published import PUBLISHED

SCHEMA = "pg2ref/doctor/1"


def diagnose() -> dict[str, Any]:
    """Look at machine, kernels, cache and what can run; reads no weights and computes nothing."""
    from pg2ref.kernels.compiling import num_threads
    from pg2ref.kernels.simd.cpu import NEEDED, cpu, target_features

    memory, kept = read_memory(), kept_kernels()
    used = sorted(set().union(*NEEDED.values()) & target_features())
    return {
        "schema": SCHEMA,
        "versions": versions(),
        "system": platform.platform(),
        "cpu": {"name": cpu_name(), "features": used, "path": cpu().name},
        "threads": {"usable": usable_cpus(), "used": num_threads()},
        "memory": {"total": memory.total, "available": memory.available, "limited_by": memory.limited_by},
        "kernels": {"folder": kept.folder, "ready": kept.ready, "total": kept.total},
        "default_precision": choose_precision("numba", None, "bf16"),
        "cache": {"folder": str(hub_cache_folder()), "free": free_bytes(), "models": list(cached_checkpoints())},
        "sizes": list(sizes(memory.total, memory.available)),
    }


def free_bytes() -> int | None:
    """Of the disk that downloads go to; None where there is none yet."""
    folder = hub_cache_folder()
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    return shutil.disk_usage(existing).free if existing else None


def cached_checkpoints() -> Iterator[dict[str, Any]]:
    """The PaliGemma checkpoints in the Hugging Face cache, whole or not, and what is wrong with those that are not."""
    for name, folder in cached_models():
        try:
            config = read_json_object(folder / CONFIG_NAME)
        except CheckpointError:
            continue  # another kind of model, or nothing of it yet
        if config.get("model_type") != "paligemma":
            continue
        found: dict[str, Any] = {"name": str(name), "folder": str(folder), "size": published_size(config)}
        found |= {"problem": None, "bytes": None, "unfinished_bytes": unfinished_bytes(folder.parent.parent)}
        try:
            found["bytes"] = sum(path.stat().st_size for path in weight_files(folder))
            manifest = read_manifest(folder)
            found["quantized_to"] = manifest.to if manifest else None
        except CheckpointError as error:
            found["problem"] = str(error)
        yield found


def published_size(config: Mapping[str, Any]) -> str | None:
    """Which published size has these numbers."""
    try:
        parsed = parse_config(config)
    except CheckpointError:
        return None
    alike = (size for size, known in PUBLISHED.items() if (known.vision, known.text) == (parsed.vision, parsed.text))
    return next(alike, None)


def sizes(total: int | None, available: int | None) -> Iterator[dict[str, Any]]:
    """Each published size at each precision: bytes, and whether they fit."""
    for size, config in PUBLISHED.items():
        for precision in PRECISIONS:
            needed = need(config, precision)
            yield {"size": size, "precision": precision, **needed._asdict(), "total": needed.total} | {
                "verdict": verdict(needed, total, available)
            }


def to_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """For people."""
    cpu, threads, memory = found["cpu"], found["threads"], found["memory"]
    kernels, cache = found["kernels"], found["cache"]
    yield "versions   " + ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield f"system     {found['system']}"
    yield f"processor  {cpu['name']}: {', '.join(cpu['features']) or 'no vector instructions that matter'}"
    yield f"kernels    path {cpu['path']}, precision {found['default_precision']} for bf16 weights; {_kept(kernels)}"
    yield f"threads    {threads['used']} of {threads['usable']}"
    yield f"memory     {_gb(memory['available'])} available of {_gb(memory['total'])} ({memory['limited_by']})"
    yield f"cache      {cache['folder']}, {_gb(cache['free'])} free on its disk"
    for model in cache["models"]:
        yield f"           {model['name']}: {_model(model)}"
    if not cache["models"]:
        yield "           no PaliGemma; `pg2ref download google/paligemma2-3b-mix-224` fetches one"
    yield ""
    yield f"What can run: GB of weights + GB of the process, for an image and {TEXT_TOKENS} tokens of text"
    yield f"{'':<10}" + "".join(f"{precision:<22}" for precision in PRECISIONS)
    by_size: dict[str, list[str]] = {}
    for one in found["sizes"]:
        own = one["keys_and_values"] + one["working"]
        cell = f"{one['weights'] / 1e9:5.2f} + {own / 1e9:4.2f}  {one['verdict']}"
        by_size.setdefault(one["size"], []).append(f"{cell:<22}")
    for size, cells in by_size.items():
        yield f"{size:<10}" + "".join(cells).rstrip()
    yield "fits: now. tight: once other programs give memory back; until then weights are read from the disk again for"
    yield "every token. no: that is so whatever is closed. int8 and int4 are made by `pg2ref quantize`."


def _kept(kernels: Mapping[str, Any]) -> str:
    if kernels["folder"] is None:
        return "not compiled (NUMBA_DISABLE_JIT)"
    state = f"{kernels['ready']} of {kernels['total']} compiled in {kernels['folder']}"
    return state if kernels["ready"] else f"{state}: the first run compiles them, about half a minute"


def _model(model: Mapping[str, Any]) -> str:
    if model["problem"]:
        begun = f" ({_gb(model['unfinished_bytes'])} of unfinished files are kept)" if model["unfinished_bytes"] else ""
        return f"partial{begun}: {model['problem']}; `pg2ref download {model['name']}` goes on"
    kind = f"{model['size'] or 'a size of its own'}, {model['quantized_to'] or 'not quantised'}"
    return f"whole, {_gb(model['bytes'])}, {kind}"


def _gb(count: int | None) -> str:
    return "an unknown amount" if count is None else f"{count / 1e9:.2f} GB"
