"""The house has floors: a module imports from lower ones only, and each outside library has its place."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "errors": 0.0,
    "arrays": 1.0,
    "policy": 1.0,
    "config": 1.1,
    "published": 1.2,
    "quantized": 1.2,
    "adapted": 1.3,
    "trace": 1.1,
    "demo.builtin": 2.0,
    "demo.familiarity": 2.0,
    "checkpoint.safetensors_file": 2.0,
    "checkpoint.preprocessor": 2.0,
    "checkpoint.npy_header": 2.0,
    "checkpoint.shards": 2.1,
    "checkpoint.locate": 2.2,
    "hub.names": 2.0,
    "hub.cache": 2.1,
    "hub.download": 2.2,
    "checkpoint.safetensors_writer": 2.2,
    "checkpoint.manifest": 2.2,
    "inputs.image": 2.0,
    "inputs.video": 2.1,
    "inputs.tokenizer_files": 2.0,
    "inputs.tokenizer": 2.1,
    "inputs.prompt": 2.2,
    "model.ops": 2.1,
    "model.rope": 2.0,
    "model.masks": 2.0,
    "model.kv_cache": 2.0,
    "model.backend": 3.0,
    "model.rounding": 3.1,
    "model.vqvae": 4.0,
    "model.siglip": 4.0,
    "model.projector": 4.0,
    "model.gemma2": 4.0,
    "model.paligemma": 5.0,
    "checkpoint.tensor_table": 6.0,
    "checkpoint.loader": 6.1,
    "checkpoint.new_folder": 2.2,
    "checkpoint.quantize": 6.2,
    "adapters.lora_config": 6.0,
    "adapters.adapter": 6.2,
    "adapters.apply": 6.3,
    "adapters.identity": 6.3,
    "adapters.merge": 6.4,
    "checkpoint.npz": 2.2,
    "checkpoint.vae_npz": 6.0,
    "checkpoint.big_vision": 6.2,
    "checkpoint.open": 6.3,
    "checkpoint.config_json": 2.0,
    "generation.sampling": 7.0,
    "generation.options": 7.1,
    "generation.generate": 7.1,
    "generation.beam": 7.2,
    "generation.given": 7.2,
    "generation.score": 7.2,
    "generation.batch": 7.2,
    "outputs.rle": 7.0,
    "outputs.png": 7.0,
    "outputs.detection": 7.0,
    "outputs.segmentation": 7.0,
    "outputs.objects": 7.1,
    "outputs.overlay": 7.2,
    "outputs.supervision_detections": 7.2,
    "outputs.result": 7.3,
    "parity.difference": 7.0,
    "parity.name_map": 7.0,
    "parity.summary": 7.1,
    "parity.streamed_file": 7.1,
    "parity.trace_file": 7.2,
    "parity.records": 7.3,
    "parity.adapters_used": 7.31,
    "parity.runs_apart": 7.32,
    "parity.compare": 7.4,
    "parity.bugs.run": 7.0,
    "parity.bugs.inputs": 7.1,
    "parity.bugs.vision": 7.1,
    "parity.bugs.decoder": 7.1,
    "parity.bugs.attention": 7.1,
    "parity.bugs.collection": 7.2,
    "parity.blocks": 7.3,
    "parity.check": 7.5,
    "parity.isolate": 7.5,
    "parity.diagnose": 7.4,
    "parity.replay": 7.4,
    "parity.weightless": 7.5,
    "parity.effect": 8.1,
    "recording.facts": 7.4,
    "recording.run_trace": 7.5,
    "recording.noise_floor": 7.5,
    "recording.record": 8.1,
    "outputs.scores": 7.4,
    "demo.drawing.dice": 8.0,
    "demo.drawing.raster": 8.0,
    "demo.drawing.words": 8.0,
    "demo.drawing.shapes": 8.1,
    "demo.drawing.lettering": 8.2,
    "demo.drawing.colours": 8.2,
    "demo.drawing.layout": 8.3,
    "demo.scene": 8.4,
    "demo.truth": 8.5,
    "demo.languages": 8.0,
    "demo.tasks": 8.5,
    "answer": 7.9,
    "api": 8.0,
    "benchmark.work": 7.4,
    "benchmark.report": 7.5,
    "benchmark.picture": 7.6,
    "benchmark.measure": 8.1,
    "doctor.memory_need": 6.3,
    "doctor.machine": 2.0,
    "doctor.kernel_cache": 2.0,
    "doctor.report": 7.6,
    "evaluation.quantization": 8.1,
    "batch.rows": 7.0,
    "batch.run": 8.1,
    "batch.resume": 7.1,
    "batch.ray_engine": 8.2,
    "cli.options": 9.0,
    "cli.progress": 9.0,
    "cli.stdin": 9.0,
    "cli.answers": 9.0,
    "cli.bench": 9.1,
    "cli.files": 9.0,
    "cli.objects": 9.1,
    "cli.batch": 9.2,
    "cli.drawn_scene": 9.2,
    "cli.generate": 9.3,
    "cli.detect": 9.2,
    "cli.segment": 9.2,
    "cli.trace": 9.1,
    "cli.compare": 9.1,
    "cli.inspect": 9.1,
    "cli.quantize": 9.1,
    "cli.merge": 9.1,
    "cli.tokenize": 9.1,
    "cli.museum": 9.1,
    "cli.download": 9.1,
    "cli.doctor": 9.1,
    "cli.scene": 9.1,
    "cli.score": 9.1,
    "cli.main": 9.4,
    "__main__": 9.5,
}
HOMES = {  # outside library -> the only modules that import it
    "click": ("cli.",),
    "PIL": (
        "inputs.image",
        "inputs.video",
        "benchmark.picture",
        "outputs.overlay",
        "outputs.png",
        "outputs.segmentation",
    ),
    "sentencepiece": ("inputs.tokenizer_files",),
    "tokenizers": ("inputs.tokenizer_files",),
    "huggingface_hub": ("hub.download",),
    "supervision": ("outputs.supervision_detections",),
    "av": ("inputs.video",),
    "ray": ("batch.ray_engine",),
    "safetensors": (),
    "numba": ("kernels.",),
    "llvmlite": ("kernels.",),
}
FILES = sorted((ROOT / "pg2ref").rglob("*.py")) + sorted((ROOT / "kernels").rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[0] == "pg2ref" else parts)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported module of a file, with its line; relative imports are not used here."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = str(node.module)
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


MODULES = [path for path in FILES if path.name != "__init__.py"]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    name = module_name(path)
    for imported, line in imports(path):
        target = imported.removeprefix("pg2ref.")
        if imported.startswith("pg2ref.") and target in FLOORS:
            assert FLOORS[target] < FLOORS[name], f"{path}:{line} imports {imported} from its own floor or above"


def test_every_module_has_a_floor() -> None:
    named = {module_name(path) for path in MODULES if not module_name(path).startswith("kernels")}
    assert named == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_libraries_stay_in_their_places(path: Path) -> None:
    name = module_name(path)
    for imported, line in imports(path):
        library = imported.split(".")[0]
        where = f"{path}:{line} imports {imported}"
        assert library != "kernels", f"{where}: its name is pg2ref.kernels"
        allowed = HOMES.get(library)
        if allowed is not None:
            assert name.startswith(allowed) if allowed else False, where
        elif library not in sys.stdlib_module_names:
            assert library in ("numpy", "pg2ref"), where
        if name.startswith("kernels"):
            inside = imported == "pg2ref" or imported.startswith("pg2ref.kernels")
            assert library != "pg2ref" or inside, f"{where}: kernels stand on their own"


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "oracles").glob("*.py")), ids=lambda path: path.stem)
def test_oracles_are_independent(path: Path) -> None:
    assert not [line for imported, line in imports(path) if imported.split(".")[0] in ("pg2ref", "tools")]
