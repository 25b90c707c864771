"""Every bad input ends in one line that says what was expected, what came and what to do, and in its exit code."""

import json
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import random_checkpoint
from cli_runner import make_run, write_picture

from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.checkpoint.quantize import quantize_checkpoint

USAGE, NOT_AVAILABLE, UNREADABLE, INCONSISTENT = 2, 3, 4, 5
NAN, INFINITY = b"\xc0\x7f", b"\x80\x7f"  # bf16, little-endian
Arguments = list[object]


class World(NamedTuple):
    """What a case may spoil: its own copies of a checkpoint, one file and sharded, and a good picture."""

    root: Path
    small: Path
    sharded: Path
    picture: Path


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_config(folder: Path, part: str, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part] |= fields
    (folder / "config.json").write_text(json.dumps(config))


def truncate(path: Path, keep: float) -> None:
    os.truncate(path, int(path.stat().st_size * keep))


def edit_header(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    stored = path.read_bytes()
    length = int.from_bytes(stored[:8], "little")
    header = json.loads(stored[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + stored[8 + length :])


def put_number(folder: Path, tensor: str, bits: bytes, row: int = 0) -> None:
    """Overwrite the first number of a row of a bf16 tensor in model.safetensors."""
    path = folder / "model.safetensors"
    with path.open("r+b") as stream:
        length = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(length))[tensor]
        width = entry["shape"][-1] if len(entry["shape"]) > 1 else 1
        stream.seek(8 + length + entry["data_offsets"][0] + 2 * row * width)
        stream.write(bits)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge_png() -> bytes:
    """A PNG of 100,000 x 100,000 pixels in 70 bytes."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 20)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


# Each case spoils something and returns the arguments of the command that meets it.


def truncated_file(world: World) -> Arguments:
    truncate(world.small / "model.safetensors", 0.6)
    return ["generate", world.picture, "-m", world.small]


def truncated_shard(world: World) -> Arguments:
    truncate(world.sharded / "model-00002-of-00004.safetensors", 0.9)
    return ["generate", world.picture, "-m", world.sharded]


def overlapping_offsets(world: World) -> Arguments:
    def edit(header: dict[str, Any]) -> None:
        names = sorted((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
        begin, end = header[names[1]]["data_offsets"]
        header[names[1]]["data_offsets"] = [begin - 2, end - 2]

    edit_header(world.small / "model.safetensors", edit)
    return ["generate", world.picture, "-m", world.small]


def offsets_out_of_range(world: World) -> Arguments:
    def edit(header: dict[str, Any]) -> None:
        last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
        begin, _ = header[last]["data_offsets"]
        header[last] = {"dtype": "BF16", "shape": [1 << 40], "data_offsets": [begin, begin + (1 << 41)]}

    edit_header(world.small / "model.safetensors", edit)
    return ["generate", world.picture, "-m", world.small]


def header_of_a_gigabyte(world: World) -> Arguments:
    path = world.small / "model.safetensors"
    path.write_bytes((10**9).to_bytes(8, "little") + path.read_bytes()[8:])
    return ["generate", world.picture, "-m", world.small]


VISION_LAYER = "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"
DECODER_LAYER = "language_model.model.layers.2.self_attn.k_proj.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"
FINAL_NORM = "language_model.model.norm.weight"
UNUSED_ROW = 2400  # of the embedding: behind <image>, so no prompt holds it


def bad_number(tensor: str, bits: bytes, row: int = 0) -> Callable[[World], Arguments]:
    def spoil(world: World) -> Arguments:
        put_number(world.small, tensor, bits, row)
        return ["generate", world.picture, "-m", world.small, "-n", "3"]

    return spoil


def several_bad_tensors(world: World) -> Arguments:
    put_number(world.small, VISION_LAYER, NAN)
    put_number(world.small, FINAL_NORM, INFINITY)
    return ["inspect", world.small, "--verify"]


def no_tokenizer(world: World) -> Arguments:
    (world.small / "tokenizer.model").unlink()
    (world.small / "tokenizer.json").unlink()
    return ["generate", world.picture, "-m", world.small]


def corrupt_tokenizer(world: World) -> Arguments:
    (world.small / "tokenizer.model").write_bytes(b"\x00garbage" * 50)
    return ["tokenize", "caption en", "-m", world.small]


def truncated_tokenizer(world: World) -> Arguments:
    truncate(world.small / "tokenizer.model", 0.5)
    return ["tokenize", "caption en", "-m", world.small]


def tokenizer_larger_than_embedding(world: World) -> Arguments:
    shutil.rmtree(world.small)
    config = random_checkpoint.released_config("small")
    config["text_config"] = {**config["text_config"], "vocab_size": 2000}
    random_checkpoint.write_checkpoint(world.small, config)
    return ["generate", world.picture, "-m", world.small]


def weights_of_another_resolution(world: World) -> Arguments:
    edit_config(world.small, "vision_config", image_size=28)
    (world.small / "preprocessor_config.json").unlink()
    return ["generate", world.picture, "-m", world.small]


def preprocessor_of_another_resolution(world: World) -> Arguments:
    edit_json(world.small / "preprocessor_config.json", size={"height": 448, "width": 448})
    return ["generate", world.picture, "-m", world.small]


def preprocessor_of_another_mean(world: World) -> Arguments:
    edit_json(world.small / "preprocessor_config.json", image_mean=[0.48, 0.45, 0.4])
    return ["inspect", world.small]


def absurd_resolution(world: World) -> Arguments:
    edit_config(world.small, "vision_config", image_size=14 * 100_000)
    return ["tokenize", "caption en", "-m", world.small]


def another_depth(world: World) -> Arguments:
    edit_config(world.small, "text_config", num_hidden_layers=6)
    return ["inspect", world.small]


def image_bytes(name: str, content: bytes) -> Callable[[World], Arguments]:
    def spoil(world: World) -> Arguments:
        (world.root / name).write_bytes(content)
        return ["generate", world.root / name, "-m", world.small]

    return spoil


def truncated_picture(suffix: str) -> Callable[[World], Arguments]:
    def spoil(world: World) -> Arguments:
        path = write_picture(world.root / f"half.{suffix}", (300, 200))
        truncate(path, 0.5)
        return ["generate", path, "-m", world.small]

    return spoil


def image_at(name: str) -> Callable[[World], Arguments]:
    return lambda world: ["generate", world.root / name, "-m", world.small]


def folder_without_config(world: World) -> Arguments:
    (world.small / "config.json").unlink()
    return ["generate", world.picture, "-m", world.small]


def empty_folder(world: World) -> Arguments:
    (world.root / "empty").mkdir()
    return ["inspect", world.root / "empty"]


def model_called(name: str, command: str = "generate") -> Callable[[World], Arguments]:
    return lambda world: [command, world.picture if command == "generate" else "caption en", "-m", name]


def half_downloaded(world: World) -> Arguments:
    repository = world.root / "hub" / "models--google--paligemma2-3b-mix-224"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(world.sharded, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit / "model-00003-of-00004.safetensors").unlink()
    return ["generate", world.picture, "-m", "google/paligemma2-3b-mix-224"]


def config_field(part: str | None = None, **fields: Any) -> Callable[[World], Arguments]:
    def spoil(world: World) -> Arguments:
        if part:
            edit_config(world.small, part, **fields)
        else:
            edit_json(world.small / "config.json", **fields)
        return ["inspect", world.small]

    return spoil


def config_text(text: str) -> Callable[[World], Arguments]:
    def spoil(world: World) -> Arguments:
        (world.small / "config.json").write_text(text)
        return ["inspect", world.small]

    return spoil


def missing_shard(world: World) -> Arguments:
    (world.sharded / "model-00002-of-00004.safetensors").unlink()
    return ["inspect", world.sharded]


def index_that_leaves_the_folder(world: World) -> Arguments:
    path = world.sharded / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    edit_json(path, weight_map=weight_map | {EMBEDDING: "../../etc/model.safetensors"})
    return ["inspect", world.sharded]


def only_pytorch_weights(world: World) -> Arguments:
    (world.small / "model.safetensors").rename(world.small / "pytorch_model.bin")
    return ["generate", world.picture, "-m", world.small]


def adapter_as_model(world: World) -> Arguments:
    folder = world.root / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return ["generate", world.picture, "-m", folder]


def prompt(text: str, *more: object) -> Callable[[World], Arguments]:
    return lambda world: ["generate", world.picture, "-m", world.small, "-p", text, *more]


def options(*more: object) -> Callable[[World], Arguments]:
    return prompt("caption en", *more)


def quantized(then: Callable[[World, Path], Arguments]) -> Callable[[World], Arguments]:
    """A checkpoint that was quantised to int4, and what is done with it."""

    def spoil(world: World) -> Arguments:
        folder = world.root / "int4"
        quantize_checkpoint(load_checkpoint(world.small), folder, "int4", source_name="small")
        return then(world, folder)

    return spoil


def without_manifest(world: World, folder: Path) -> Arguments:
    (folder / "quantization.json").unlink()
    return ["generate", world.picture, "-m", folder]


def manifest_of_tomorrow(world: World, folder: Path) -> Arguments:
    edit_json(folder / "quantization.json", format="pg2ref-quantized/2")
    return ["inspect", folder]


def manifest_of_another_type(world: World, folder: Path) -> Arguments:
    edit_json(folder / "quantization.json", to="int8")
    return ["inspect", folder]


def scales_that_are_nan(world: World, folder: Path) -> Arguments:
    put_number(folder, FINAL_NORM.replace("norm.weight", "layers.0.mlp.up_proj.scales"), NAN)
    return ["generate", world.picture, "-m", folder, "-n", "2", "--backend", "numpy"]


def quantize_with(*more: str, out: str = "new") -> Callable[[World], Arguments]:
    return lambda world: ["quantize", "-m", world.small, "-o", world.root / out, *more]


def quantize_bad_weight(world: World) -> Arguments:
    put_number(world.small, EMBEDDING, NAN, UNUSED_ROW)
    return quantize_with("--to", "int8")(world)


CASES: dict[str, tuple[Callable[[World], Arguments], int, list[str]]] = {
    "truncated file": (truncated_file, INCONSISTENT, ["model.safetensors", "truncated", "download it again"]),
    "truncated shard": (truncated_shard, INCONSISTENT, ["model-00002-of-00004", "truncated", "download it again"]),
    "overlapping offsets": (overlapping_offsets, INCONSISTENT, ["overlaps", "begins at", "expected"]),
    "offsets out of range": (offsets_out_of_range, INCONSISTENT, ["truncated", "2,199,0", "download it again"]),
    "header of a gigabyte": (header_of_a_gigabyte, INCONSISTENT, ["1,000,000,000 bytes", "at most 100,000,000"]),
    "NaN, vision layer": (bad_number(VISION_LAYER, NAN), INCONSISTENT, [VISION_LAYER, "NaN", "inspect --verify"]),
    "NaN, decoder layer": (bad_number(DECODER_LAYER, NAN), INCONSISTENT, [DECODER_LAYER, "NaN", "download"]),
    "NaN, unused row": (bad_number(EMBEDDING, NAN, UNUSED_ROW), INCONSISTENT, [EMBEDDING, "NaN", "download"]),
    "NaN, final norm": (bad_number(FINAL_NORM, NAN), INCONSISTENT, [FINAL_NORM, "NaN", "download"]),
    "Inf, vision layer": (bad_number(VISION_LAYER, INFINITY), INCONSISTENT, [VISION_LAYER, "infinity", "download"]),
    "Inf, decoder layer": (bad_number(DECODER_LAYER, INFINITY), INCONSISTENT, [DECODER_LAYER, "infinity"]),
    "Inf, unused row": (bad_number(EMBEDDING, INFINITY, UNUSED_ROW), INCONSISTENT, [EMBEDDING, "infinity"]),
    "Inf, final norm": (bad_number(FINAL_NORM, INFINITY), INCONSISTENT, [FINAL_NORM, "infinity", "download"]),
    "two bad tensors": (several_bad_tensors, INCONSISTENT, ["2 of 101 tensors", VISION_LAYER, FINAL_NORM, "again"]),
    "no tokenizer": (no_tokenizer, INCONSISTENT, ["no tokenizer", "tokenizer.model or tokenizer.json", "copy"]),
    "corrupt tokenizer": (corrupt_tokenizer, INCONSISTENT, ["tokenizer.model", "SentencePiece", "copy it again"]),
    "truncated tokenizer": (truncated_tokenizer, INCONSISTENT, ["tokenizer.model", "copy it again"]),
    "tokenizer too large": (tokenizer_larger_than_embedding, INCONSISTENT, ["2,353 pieces", "2,000 rows", "copy"]),
    "weights of another resolution": (
        weights_of_another_resolution,
        INCONSISTENT,
        ["position_embedding", "expected (4, 48)", "got (16, 48)", "56 px", "28 px", "same checkpoint"],
    ),
    "preprocessor of another resolution": (
        preprocessor_of_another_resolution,
        INCONSISTENT,
        ["preprocessor_config.json", "448", "expected {'height': 56", "mixed up"],
    ),
    "preprocessor of another mean": (preprocessor_of_another_mean, INCONSISTENT, ["image_mean", "0.48", "expected"]),
    "another depth": (
        another_depth,
        INCONSISTENT,
        ["22 problems", "same checkpoint", "missing", "layers.4", "and 10 more"],
    ),
    "huge PNG": (
        image_bytes("huge.png", huge_png()),
        UNREADABLE,
        ["huge.png", "178,956,970 pixels", "at most", "shrink"],
    ),
    "truncated PNG": (truncated_picture("png"), UNREADABLE, ["half.png", "expected a whole image", "truncated"]),
    "truncated JPEG": (truncated_picture("jpg"), UNREADABLE, ["half.jpg", "expected a whole image", "truncated"]),
    "empty image": (image_bytes("empty.png", b""), UNREADABLE, ["empty.png", "empty"]),
    "text as image": (image_bytes("notes.txt", b"a list of things\n"), UNREADABLE, ["notes.txt", "expected", "PNG"]),
    "folder as image": (image_at("small"), UNREADABLE, ["small", "expected an image file", "director"]),
    "missing image": (image_at("nowhere.png"), UNREADABLE, ["nowhere.png", "expected an image file", "such file"]),
    "no config.json": (folder_without_config, INCONSISTENT, ["no config.json", "it holds", "model.safetensors"]),
    "empty folder": (empty_folder, INCONSISTENT, ["no config.json", "empty"]),
    "unknown model": (model_called("gpt"), NOT_AVAILABLE, ["'gpt'", "no such folder", "pg2ref download"]),
    "not in the cache": (
        model_called("google/paligemma2-10b-pt-448"),
        NOT_AVAILABLE,
        ["hub/models--google--", "pg2ref download google/paligemma2-10b-pt-448", "licence"],
    ),
    "not in the cache, tokenize": (model_called("org/name", "tokenize"), NOT_AVAILABLE, ["pg2ref download org/name"]),
    "half downloaded": (half_downloaded, NOT_AVAILABLE, ["model-00003-of-00004", "missing", "pg2ref download google"]),
    "picture as model": (
        lambda world: ["generate", world.picture, "-m", world.picture],
        NOT_AVAILABLE,
        ["expected a folder with config.json", "got another kind of file"],
    ),
    "unknown config field": (config_field(rope_scalling=2), INCONSISTENT, ["unknown field rope_scalling", "remove"]),
    "config field of another model": (
        config_field("text_config", hidden_activation="relu"),
        INCONSISTENT,
        ["hidden_activation is 'relu'", "gelu_pytorch_tanh"],
    ),
    "end of text outside": (
        lambda world: [
            edit_json(world.small / "generation_config.json", eos_token_id=999_999),
            *["generate", world.picture, "-m", world.small, "--beams", "2"],
        ][1:],
        INCONSISTENT,
        ["eos_token_id", "999999", "2432"],
    ),
    "absurd resolution": (
        absurd_resolution,
        INCONSISTENT,
        ["image_size is 1400000", "at most"],
    ),
    "config is no JSON": (config_text("{'a': 1,"), INCONSISTENT, ["config.json", "expected a JSON object", "again"]),
    "config is a list": (config_text("[1, 2]"), INCONSISTENT, ["config.json", "expected a JSON object", "list"]),
    "config of another model": (
        config_text('{"model_type": "llama"}'),
        INCONSISTENT,
        ["model_type is 'llama'", "computes 'paligemma' only"],
    ),
    "missing shard": (missing_shard, INCONSISTENT, ["1 of 4 shards", "model-00002-of-00004", "download"]),
    "index leaves the folder": (index_that_leaves_the_folder, INCONSISTENT, ["plain name.safetensors", "../../etc"]),
    "only pytorch weights": (only_pytorch_weights, INCONSISTENT, ["pytorch_model.bin", "safetensors", "convert"]),
    "Gemma 1 with soft caps": (
        config_field("text_config", model_type="gemma"),
        INCONSISTENT,
        ["unknown field", "attn_logit_softcapping"],
    ),
    "adapter as model": (adapter_as_model, INCONSISTENT, ["adapter", "base model"]),
    "two marks, one image": (
        prompt("<image><image>same?"),
        UNREADABLE,
        ["2 <image>", "images is 1", "leave <image> out"],
    ),
    "half a surrogate": (prompt("caption \udcff"), UNREADABLE, ["U+DCFF", "character 8", "UTF-8"]),
    "n is 0": (options("-n", 0), USAGE, ["max_new_tokens is 0", "1 to 8192"]),
    "n is huge": (options("-n", 10**9), USAGE, ["max_new_tokens is 1000000000", "1 to 8192"]),
    "n is a word": (options("-n", "many"), USAGE, ["--max-new-tokens", "many", "generate --help"]),
    "top-p without temperature": (options("--top-p", 0.9), USAGE, ["top-p", "temperature above 0"]),
    "top-k without temperature": (options("--top-k", 5), USAGE, ["top-k", "temperature above 0"]),
    "top-p above 1": (options("--temperature", 1, "--top-p", 1.5), USAGE, ["top-p is 1.5", "at most 1"]),
    "top-k of 0": (options("--temperature", 1, "--top-k", 0), USAGE, ["top-k is 0", "1 or more"]),
    "negative temperature": (options("--temperature", -1), USAGE, ["temperature is -1.0", "0 (greedy) or more"]),
    "temperature is nan": (options("--temperature", "nan"), USAGE, ["temperature is nan", "0 (greedy) or more"]),
    "negative seed": (options("--temperature", 1, "--seed", -1), USAGE, ["seed is -1", "0 or more"]),
    "negative logprobs": (options("--logprobs", -1), USAGE, ["logprobs is -1", "0 or more"]),
    "no beams": (options("--beams", 0), USAGE, ["beams is 0", "expected 1 to"]),
    "a million beams": (options("--beams", 10**6), USAGE, ["beams is 1000000", "expected 1 to"]),
    "beams with temperature": (
        options("--beams", 2, "--temperature", 1),
        USAGE,
        ["beam search", "leave out temperature"],
    ),
    "beams without cache": (options("--beams", 2, "--no-cache"), USAGE, ["beam search", "no-cache"]),
    "unknown precision": (
        options("--precision", "f16"),
        USAGE,
        ["--precision", "'f16'", "'f32', 'bf16', 'f64', 'int8', 'int4'"],
    ),
    "unknown resize": (options("--resize", "lanczos"), USAGE, ["--resize", "'lanczos'", "'bicubic'"]),
    "no threads": (options("--threads", 0), USAGE, ["--threads", "x>=1"]),
    "unknown option": (options("--max-length", 5), USAGE, ["no such option", "--max-length", "generate --help"]),
    "unknown command": (lambda world: ["caption", world.picture], USAGE, ["no such command", "caption", "--help"]),
    "no image": (lambda world: ["generate", "-m", world.small], USAGE, ["no image given", "name one"]),
    "no model, tokenize": (lambda world: ["tokenize", "x"], USAGE, ["no model given", "-m FOLDER"]),
    "no model, inspect": (lambda world: ["inspect"], USAGE, ["no model given", "-m FOLDER"]),
    "two models": (lambda world: ["inspect", world.small, "-m", world.sharded], USAGE, ["two models", "name one"]),
    "too many images": (
        lambda world: ["tokenize", "x", "-m", world.small, "--images", 10**9],
        USAGE,
        ["--images", "1<=x<=1000"],
    ),
    "quantised, no manifest": (
        quantized(without_manifest),
        INCONSISTENT,
        ["quantization.json is missing", ".codes", "copy the whole folder"],
    ),
    "manifest of another version": (
        quantized(manifest_of_tomorrow),
        INCONSISTENT,
        ["format is 'pg2ref-quantized/2'", "expected 'pg2ref-quantized/1'", "quantise the source again"],
    ),
    "manifest of another type": (
        quantized(manifest_of_another_type),
        INCONSISTENT,
        ["29 problems", "wrong type", "expected int8, got int4", "same checkpoint"],
    ),
    "NaN scale": (quantized(scales_that_are_nan), INCONSISTENT, ["up_proj.scales", "NaN", "download"]),
    "int8 of a bf16 checkpoint": (
        options("--precision", "int8"),
        USAGE,
        ["precision int8", "these are bf16", "quantize --to int8"],
    ),
    "f32 kernels of an int4 checkpoint": (
        quantized(lambda world, folder: ["generate", world.picture, "-m", folder, "--precision", "f32"]),
        USAGE,
        ["int4", "not f32", "give backend numpy"],
    ),
    "quantize to nothing": (quantize_with(), USAGE, ["nothing to do", "--to int8", "--report IMAGE"]),
    "quantize to int3": (quantize_with("--to", "int3"), USAGE, ["--to", "'int3'", "'int8', 'int4'"]),
    "quantize into a full folder": (
        quantize_with("--to", "int8", out="sharded"),
        USAGE,
        ["sharded", "expected a new folder", "another name"],
    ),
    "quantize into nowhere": (
        quantize_with("--to", "int8", out="no/where"),
        USAGE,
        ["there is no folder", "make it first"],
    ),
    "quantize twice": (
        quantized(lambda world, folder: ["quantize", "-m", folder, "-o", world.root / "new", "--to", "int8"]),
        USAGE,
        ["quantised to int4 already", "expected the checkpoint it was made from"],
    ),
    "quantize a NaN": (quantize_bad_weight, INCONSISTENT, [EMBEDDING, "NaN", "download"]),
    "report on no picture": (
        quantize_with("--to", "int8", "--report", "nowhere.png"),
        UNREADABLE,
        ["nowhere.png", "expected an image file", "such file"],
    ),
    "report on nothing": (
        lambda world: ["quantize", "-m", world.small, "-o", world.root / "new", "--report", world.picture],
        NOT_AVAILABLE,
        ["new", "no such folder"],
    ),
    "quantize without a model": (
        lambda world: ["quantize", "-o", world.root / "new", "--to", "int8"],
        USAGE,
        ["no model given", "-m FOLDER"],
    ),
    "stdin twice": (lambda world: ["generate", "-", "-p", "-", "-m", world.small], USAGE, ["`-`", "once"]),
}
# a line for each tensor that does not fit
MANY_LINES = {"weights of another resolution", "another depth", "manifest of another type"}


@pytest.fixture(scope="module")
def sharded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "sharded"
    random_checkpoint.write_checkpoint(folder, random_checkpoint.released_config("small"), max_shard_bytes=400_000)
    return folder


@pytest.fixture
def world(tmp_path: Path, small_folder: Path, sharded_folder: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    small = shutil.copytree(small_folder, tmp_path / "small")
    sharded = shutil.copytree(sharded_folder, tmp_path / "sharded")
    return World(tmp_path, small, sharded, write_picture(tmp_path / "good.png"))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_explained(
    name: str, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, code, key_words = CASES[name]
    arguments = spoil(world)
    started = time.monotonic()
    ran = make_run(capsys, monkeypatch)(*arguments)
    elapsed = time.monotonic() - started
    print(ran.err)
    assert ran.code == code
    assert ran.out == ""
    lines = ran.err.splitlines()
    assert lines[0].startswith("pg2ref: ")
    assert len(lines) == 1 or name in MANY_LINES
    assert [word for word in key_words if word not in ran.err] == []
    assert "Traceback" not in ran.err
    assert elapsed < 5


def test_the_good_world_is_good(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this, every case above could fail for a reason of its own."""
    run = make_run(capsys, monkeypatch)
    for folder in (world.small, world.sharded):
        assert run("generate", world.picture, "-m", folder, "-n", 3)._replace(out="") == (0, "", "")
        assert run("inspect", folder, "--verify").code == 0


WATCHED = """
import sys
from pg2ref.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts the largest memory of a program there")
@pytest.mark.parametrize("name", ["huge PNG", "offsets out of range", "header of a gigabyte", "absurd resolution"])
def test_hostile_files_cost_no_memory(name: str, world: World) -> None:
    """In a process of its own, because the largest memory of this one is already spent."""
    spoil, code, _ = CASES[name]
    command = [sys.executable, "-c", WATCHED, *map(str, spoil(world))]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, len(ran.stderr.splitlines())) == (code, 1)
    assert int(ran.stdout) / 1024 < 200  # MB; NumPy and Pillow alone take 60
