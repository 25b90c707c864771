"""A port of the vision tower in plain loops, as somebody writes it in a language without NumPy; it has one mistake.

    python siglip_port.py KIT/small OUT_FOLDER

Nothing of pg2ref and no NumPy arithmetic inside: lists of floats, weights by the recipe of the golden kit, stages
written as npy files under the names of the oracle. tests/test_porting.py follows pg2ref/parity/PORTING.md with it.
"""

import hashlib
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np  # reads the kit's inputs and writes the stages

MASK = 2**64 - 1


def draw(seed, tensor):
    """The recipe of portable_numbers.py: a flat list of floats, checked against its digest."""
    z = int.from_bytes(hashlib.sha256(f"{seed} {tensor['name']}".encode()).digest()[:8], "little")
    values, stored = [], bytearray()
    for _ in range(math.prod(tensor["shape"])):
        z = (z + 0x9E3779B97F4A7C15) & MASK
        x = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
        x ^= x >> 31
        total = (x & 0xFFFF) + (x >> 16 & 0xFFFF) + (x >> 32 & 0xFFFF) + (x >> 48)
        weight = tensor["mean"] + tensor["deviation"] * ((total - 131070) / 37837.0)
        bits = struct.unpack("<I", struct.pack("<f", weight))[0]
        bits = bits + 0x7FFF + (bits >> 16 & 1) >> 16
        stored += struct.pack("<H", bits)
        values.append(struct.unpack("<f", struct.pack("<I", bits << 16))[0])
    assert hashlib.sha256(stored).hexdigest() == tensor["sha256"], tensor["name"]
    return values


def linear(rows, weight, bias):
    width = len(weight) // len(bias)
    matrix = [weight[o * width : (o + 1) * width] for o in range(len(bias))]
    return [[sum(map(float.__mul__, row, out)) + b for out, b in zip(matrix, bias)] for row in rows]


def layer_norm(rows, scale, shift, eps):
    normed = []
    for row in rows:
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / len(row) + eps)
        normed.append([(x - mean) / deviation * s + b for x, s, b in zip(row, scale, shift)])
    return normed


def gelu(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))  # the mistake: PaliGemma has the tanh form


def attend(query, key, value, heads):
    size, out = len(query[0]) // heads, [[] for _ in query]
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for row, q in enumerate(query):
            scores = [sum(map(float.__mul__, q[part], k[part])) / math.sqrt(size) for k in key]
            weights = [math.exp(s - max(scores)) for s in scores]
            total = sum(weights)
            out[row] += [sum(w * v[i] for w, v in zip(weights, value)) / total for i in range(part.start, part.stop)]
    return out


def add(rows, others):
    return [[a + b for a, b in zip(*pair)] for pair in zip(rows, others)]


def patches(pixels, size):
    """Row by row; a patch is flattened as (channel, y, x)."""
    starts = range(0, len(pixels[0]), size)
    cut = lambda y, x: [value for plane in pixels for row in plane[y : y + size] for value in row[x : x + size]]
    return [cut(y, x) for y in starts for x in starts]


def encode(kit):
    """Stages, one after the other."""
    config = json.loads((kit / "config.json").read_text())["vision_config"]
    recipe = json.loads((kit / "weights.json").read_text())
    tensors = {t["name"].removeprefix("vision_tower.vision_model."): t for t in recipe["tensors"]}
    get = lambda name: draw(recipe["seed"], tensors[name])
    pair = lambda name: (get(f"{name}.weight"), get(f"{name}.bias"))
    pixels = read_pixels(kit)
    yield "pixel_values", pixels
    hidden = linear(patches(pixels, config["patch_size"]), *pair("embeddings.patch_embedding"))
    position, width = get("embeddings.position_embedding.weight"), config["hidden_size"]
    hidden = add(hidden, [position[i * width : (i + 1) * width] for i in range(len(hidden))])
    yield "vision/patch_embeddings", hidden
    for i in range(config["num_hidden_layers"]):
        name, stage = f"encoder.layers.{i}", f"vision/layer_{i:02d}"
        normed = layer_norm(hidden, *pair(f"{name}.layer_norm1"), 1e-6)
        yield f"{stage}/layer_norm1", normed
        query, key, value = (linear(normed, *pair(f"{name}.self_attn.{p}_proj")) for p in "qkv")
        mixed = attend(query, key, value, config["num_attention_heads"])
        yield f"{stage}/attention_out", mixed
        hidden = add(hidden, linear(mixed, *pair(f"{name}.self_attn.out_proj")))
        normed = layer_norm(hidden, *pair(f"{name}.layer_norm2"), 1e-6)
        yield f"{stage}/layer_norm2", normed
        active = [[gelu(x) for x in row] for row in linear(normed, *pair(f"{name}.mlp.fc1"))]
        yield f"{stage}/gelu", active
        hidden = add(hidden, linear(active, *pair(f"{name}.mlp.fc2")))
        yield f"{stage}/out", hidden
    yield "vision/post_layernorm", layer_norm(hidden, *pair("post_layernorm"), 1e-6)


def read_pixels(kit):
    file = (kit / "inputs.safetensors").read_bytes()
    start = 8 + int.from_bytes(file[:8], "little")

    def read(name, kind):
        entry = json.loads(file[8:start])[name]
        flat = np.frombuffer(file, kind, math.prod(entry["shape"]), start + entry["data_offsets"][0])
        return flat.reshape(entry["shape"])

    return read("pixels/value_of_level", "<f4")[read("pixels/levels", "u1")].astype(float).tolist()


def main(kit, folder):
    for stage, rows in encode(kit):
        path = folder / f"{stage}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.array(rows, np.float32))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
