"""Random weights that any language makes bit for bit, from nothing but a list of tensors.

    python tools/portable_numbers.py kit/small/weights.json model.safetensors

weights.json has a seed and, for each tensor, name, shape, mean, deviation and the SHA-256 of its bytes. The recipe:

    key     the first 8 bytes, little-endian, of SHA-256("SEED NAME"), an unsigned number of 64 bits
    z(i)    splitmix64 of key + (i + 1) * 0x9E3779B97F4A7C15, for i = 0, 1, ... in row-major order, modulo 2**64:
                z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31
    x(i)    the sum of the four 16-bit quarters of z(i), less 131070, over 37837: nearly normal, of deviation 1
    w(i)    mean + deviation * x(i), in float64, no fused multiply-add; rounded to float32, then to bfloat16, both to
            the nearest, ties to even

NumPy's normal numbers come from tables that other languages do not have. Needs NumPy alone: a golden kit holds a copy
of this file, to read or to run.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

CHUNK = 1 << 22
STEP, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
MIDDLE, DEVIATION = 131070, 37837.0  # of the sum of four uniform numbers of 16 bits


def portable_bits(name: str, size: int, mean: float, deviation: float, seed: int) -> Iterator[np.ndarray]:
    """bfloat16 bit patterns of a tensor (uint16), piece by piece."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    key = np.uint64(int.from_bytes(digest[:8], "little"))
    for start in range(0, size, CHUNK):
        z = key + np.arange(start + 1, min(start + CHUNK, size) + 1, dtype=np.uint64) * STEP
        z ^= z >> np.uint64(30)
        z *= FIRST
        z ^= z >> np.uint64(27)
        z *= SECOND
        z ^= z >> np.uint64(31)
        total = z.view(np.uint16).reshape(-1, 4).sum(axis=1, dtype=np.int64)
        yield bfloat16(mean + deviation * ((total - MIDDLE) / DEVIATION))


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Bit patterns of finite float64 numbers, by way of float32."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(weights: dict, path: Path) -> None:
    """All tensors of a weights.json, in a safetensors file, each checked against its digest."""
    header, offset = {}, 0
    for tensor in weights["tensors"]:
        size = int(np.prod(tensor["shape"])) * 2
        header[tensor["name"]] = {"dtype": "BF16", "shape": tensor["shape"], "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    encoded = encoded.ljust(-(-len(encoded) // 8) * 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in weights["tensors"]:
            digest, size = hashlib.sha256(), int(np.prod(tensor["shape"]))
            drawn = tensor["name"], size, tensor["mean"], tensor["deviation"], weights["seed"]
            for bits in portable_bits(*drawn):
                digest.update(bits.astype("<u2").tobytes())
                file.write(bits.astype("<u2").tobytes())
            if digest.hexdigest() != tensor["sha256"]:
                sys.exit(f"{tensor['name']}: the digest is {digest.hexdigest()}, expected {tensor['sha256']}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write_safetensors(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
