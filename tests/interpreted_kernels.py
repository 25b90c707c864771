"""Program: run every kernel body that needs no LLVM intrinsic; test_kernels_interpreted.py compares two ways to do so.

NUMBA_DISABLE_JIT=1 python tests/interpreted_kernels.py out.npz lines.json

With NUMBA_DISABLE_JIT=1 Python itself runs the bodies, and the lines that it never came to are written down.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import numpy as np
from numba.core.extending import _Intrinsic

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.kernels import attention, elementwise, exponential, few_rows, linear, panels, quantized, stored, thin
from pg2ref.kernels.compiling import Kernel

MODULES = (elementwise, exponential, stored, attention, panels, few_rows, linear, quantized, thin)
MAGNITUDES = (1e-41, 1e-20, 1.0, 1e4, 1e18)  # the first are denormal; squares of the last exceed float32
SPREAD = np.concatenate([-np.geomspace(3e38, 1e-42, 61), [0.0, -0.0], np.geomspace(1e-42, 3e38, 61)]).astype(np.float32)


def python_function(thing: Any) -> FunctionType | None:
    """The body of a kernel or of a function that is inlined into kernels, where Python may run it."""
    function = thing.serial if isinstance(thing, Kernel) else thing
    return function if isinstance(function, FunctionType) else None


def needs_an_intrinsic(function: FunctionType) -> bool:
    """Whether the function, or one that it calls, calls what only LLVM can do."""
    used = [function.__globals__.get(name) for name in function.__code__.co_names]
    if any(isinstance(thing, _Intrinsic) for thing in used):
        return True
    inner = [python_function(thing) for thing in used if not isinstance(thing, ModuleType)]
    return any(needs_an_intrinsic(found) for found in inner if found not in (None, function))


def bodies() -> Iterator[tuple[str, CodeType]]:
    """Names and code of all bodies that Python can run. Kernels have no annotations; the wrappers around them do."""
    for module in MODULES:
        for name, thing in vars(module).items():
            function = python_function(thing)
            if function is None or function.__module__ != module.__name__ or name.startswith("_"):
                continue
            is_body = not function.__annotations__ or thing is stored.as_float32
            if is_body and not needs_an_intrinsic(function):
                yield f"{module.__name__.split('.')[-1]}.{name}", function.__code__


class LineCounter:
    """A trace function that remembers which lines of some code objects were executed."""

    def __init__(self, codes: dict[str, CodeType]) -> None:
        self.codes = codes
        self.seen: dict[CodeType, set[int]] = {code: set() for code in codes.values()}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Follow calls of the wanted functions, line by line."""
        if frame.f_code not in self.seen:
            return None
        if event == "line":
            self.seen[frame.f_code].add(frame.f_lineno)
        return self

    def missed(self) -> dict[str, list[int]]:
        """Lines of each body that were never executed."""
        found = {}
        for name, code in self.codes.items():
            lines = {line for _, _, line in code.co_lines() if line is not None}
            found[name] = sorted(lines - self.seen[code] - {code.co_firstlineno})  # which is the decorator's
        return found


def elementwise_results(rng: np.random.Generator) -> dict[str, Array]:
    found = {}
    for magnitude in MAGNITUDES:
        for rows, inputs in [(1, 1), (5, 17), (2, 1009)]:
            x = (magnitude * rng.standard_normal((rows, inputs))).astype(np.float32)
            gain, shift = rng.standard_normal((2, inputs)).astype(np.float32)
            name = f"{magnitude}_{rows}_{inputs}"
            found[f"rms_norm/{name}"] = elementwise.rms_norm(x, f32_to_bf16(gain), 1e-6)
            found[f"layer_norm/{name}"] = elementwise.layer_norm(x, gain, f32_to_bf16(shift), 1e-6)
    for size in (2, 13, 4099):  # the last is more than a chunk
        x = (3 * rng.standard_normal((1, size))).astype(np.float32)
        found[f"gelu/{size}"], found[f"gated_gelu/{size}"] = elementwise.gelu(x), elementwise.gated_gelu(x, x[:, ::-1])
        found[f"soft_cap/{size}"] = elementwise.soft_cap(x, 5.0)
    for least, most in [(0.0, 1e-38), (1e-38, 1.0), (1.0, 90.0), (90.0, np.inf)]:  # each judged by its own largest
        part = SPREAD[(np.abs(SPREAD) >= least) & (np.abs(SPREAD) < most)]
        found[f"gelu/from {least}"] = elementwise.gelu(part)
        found[f"soft_cap/from {least}"] = elementwise.soft_cap(part, 30.0)
    for rows, outputs in [(1, 5), (3, 1030)]:
        out, x, down, up = (
            rng.standard_normal(s).astype(np.float32) for s in [(rows, outputs), (rows, 45), (2, 45), (2, outputs)]
        )
        gain = None if rows == 1 else rng.uniform(0.5, 2, outputs).astype(np.float32)
        found[f"add_thin/{x.shape[1]}_{rows}"] = thin.add_thin(out, x, down, up, gain, gain)
    heads = rng.standard_normal((5, 3, 14)).astype(np.float32)
    angles = rng.uniform(-4, 4, (5, 7))
    found["rotate/"] = elementwise.rotate(heads, np.cos(angles), np.sin(angles))
    return found


def attend_results(rng: np.random.Generator) -> dict[str, Array]:
    """One query: every key is read where it lies. Scores of tens of thousands, and weights that underflow."""
    found = {}
    for size, keys, scale in [(13, 1, 1.0), (7, 131, 0.3), (7, 17, 1e4)]:
        query, key, value = (
            rng.standard_normal((n, heads, size)).astype(np.float32) for n, heads in ((1, 6), (keys, 2), (keys, 2))
        )
        value /= np.abs(value).max()  # what is read is at most 1, then
        first = np.array([min(3, keys - 1)])
        last = np.maximum(first, keys - 3)
        for cap in (None, 5.0):
            options = {"scale": scale, "logit_cap": cap}
            found[f"attend/{keys}_{scale}_{cap}"] = attention.attend(query, key, value, first, last, **options)
            out = attention.attend_bf16(query, f32_to_bf16(key), value, first, last, **options)
            found[f"attend_bf16/{keys}_{scale}_{cap}"] = out
    scores, halves = rng.standard_normal(37).astype(np.float32), np.zeros(37, np.uint16)
    attention.round_scaled(scores, np.float32(0.3), halves)
    attention.scale_all(scores, np.float32(0.3))
    return found | {"bits/rounded weights": halves, "bits/weights": scores}


def layout_results(rng: np.random.Generator) -> dict[str, Array]:
    """What only moves or rounds numbers: equal bits."""
    found = {}
    odd = np.array([np.nan, -np.nan, np.inf, -np.inf, 3.4e38, 1e-45, -0.0], np.float32)
    found["bits/rounded"] = stored.rounded(np.concatenate([SPREAD, odd])[None])
    for inputs in (2, 2 * panels.BLOCK + 4):
        x = rng.standard_normal((3, inputs)).astype(np.float32)
        panels.fetch_lines(x.ctypes.data, x.nbytes)  # gives nothing
        for kind in (panels.FLOATS, panels.SWAPPED, panels.PAIRS):
            blocks, words = panels.cut_in_blocks(x, kind)
            found[f"bits/blocks_{kind}_{inputs}"] = np.concatenate(list(blocks), axis=1)[:, :words]
    for is_bf16 in (False, True):
        x = rng.standard_normal((3, 128)).astype(np.float32)
        found[f"bits/lay_out_{is_bf16}"] = few_rows.lay_out(x, is_bf16)
    for keys in (6, 7):
        panel = np.zeros((4, panels.PANEL), np.uint32)
        attention.pack_value_pairs(f32_to_bf16(rng.standard_normal((keys, 2, 13), np.float32)), panel, 1, 0)
        found[f"bits/value_pairs_{keys}"] = panel
    x = np.concatenate([rng.standard_normal((3, 64)), np.full((3, 32), 1e-38), np.zeros((3, 5))], 1).astype(np.float32)
    codes, scales, corrections = quantized.quantized_rows(x, 128)
    found |= {"bits/codes": codes, "linear/scales": scales, "bits/corrections": corrections}
    return found


def results() -> dict[str, Array]:
    """Everything, under names that begin with the bound of closeness.py, or `bits`."""
    found: dict[str, Array] = {}
    with np.errstate(all="ignore"):  # Python reports overflow and underflow, compiled code does not
        for part in (elementwise_results, attend_results, layout_results):
            found |= part(np.random.default_rng(11))
    return found


def main(results_path: str, lines_path: str) -> None:
    counter = LineCounter(dict(bodies()))
    sys.settrace(counter)
    found = results()
    sys.settrace(None)
    np.savez(results_path, **{name.replace("/", "|"): value for name, value in found.items()})
    Path(lines_path).write_text(json.dumps(counter.missed()), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
