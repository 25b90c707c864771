"""The mistakes that ports of this model make most often, injected one by one: the golden records must catch each.

Those of the bug museum (pg2ref/parity/bugs/) change what the towers are given. The others, mostly inside one
function, are faults: a change of that function. With either, the comparison that test_golden.py makes has to fail;
without it, it passes. The numbers are a ranking of how often, and how silently, these have gone wrong elsewhere.
"""

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import golden_records
import numpy as np
import pytest
import small_models
from PIL import ExifTags, Image

from pg2ref import config as config_module
from pg2ref.arrays import Array, bf16_to_f32, f32_to_bf16, widen
from pg2ref.checkpoint import loader, tensor_table
from pg2ref.checkpoint.safetensors_file import read_tensors
from pg2ref.checkpoint.safetensors_writer import Planned, new_tensor_file
from pg2ref.config import Gemma2Config
from pg2ref.errors import CheckpointError
from pg2ref.inputs import image as image_module
from pg2ref.inputs import prompt as prompt_module
from pg2ref.inputs.image import pixel_values, read_image
from pg2ref.inputs.tokenizer import Tokenizer
from pg2ref.model import gemma2, masks, ops, paligemma, rope, siglip
from pg2ref.model.backend import REFERENCE
from pg2ref.model.kv_cache import KVCache
from pg2ref.model.paligemma import PaliGemma
from pg2ref.parity.bugs.collection import BUGS
from pg2ref.parity.bugs.run import Run

Patch = pytest.MonkeyPatch
FAULTS: dict[str, tuple[str, Callable[[Patch], None]]] = {}
original_prefix_lm = masks.prefix_lm
original_embed = gemma2.embed
original_layer = gemma2.decode_layer
original_weights = ops.group_weights


def fault(name: str, case: str = "base") -> Callable[[Callable[[Patch], None]], None]:
    """Register a fault, and the case whose record catches it."""

    def register(inject: Callable[[Patch], None]) -> None:
        FAULTS[name] = (case, inject)

    return register


def patch_op(patch: Patch, **replaced: Callable[..., Array]) -> None:
    """Replace operations of the table that the towers use."""
    table = REFERENCE._replace(**replaced)
    patch.setattr(small_models, "open_model", lambda folder: open_with(folder, table))


def open_with(folder: Path, table: Any) -> PaliGemma:
    checkpoint = loader.load_checkpoint(folder)
    return PaliGemma(checkpoint.params, checkpoint.config, ops=table)


def patch_config(patch: Patch, **fields: Any) -> None:
    """Run with another text configuration than the checkpoint's."""
    opened = small_models.open_model

    def open_model(folder: Path) -> PaliGemma:
        model = opened(folder)
        text = dataclasses.replace(model.config.text, **fields)
        return model._replace(config=dataclasses.replace(model.config, text=text))

    patch.setattr(small_models, "open_model", open_model)


def patch_masks(patch: Patch, change: Callable[..., masks.KeyRanges]) -> None:
    patch.setattr(masks, "prefix_lm", change)


@fault("2 window on both sides inside the prefix")
def _(patch: Patch) -> None:
    patch_masks(patch, lambda slots, *, policy, **rest: original_prefix_lm(slots, policy="keras", **rest))


@fault("4 Gemma 1's norm before the MLP after attention instead, as in Gemma 2", "gemma_1")
def _(patch: Patch) -> None:
    def decode_layer(layer: gemma2.DecoderLayer, *rest: Any) -> Array:
        none = np.zeros_like(layer.input_layernorm)
        norm = layer.pre_feedforward_layernorm
        as_gemma_2 = layer._replace(
            post_attention_layernorm=norm, pre_feedforward_layernorm=none, post_feedforward_layernorm=none
        )
        return original_layer(as_gemma_2, *rest)

    patch.setattr(gemma2, "decode_layer", decode_layer)
    patch_config(patch, post_norms=True)


@fault("6 soft caps in Gemma 1 as in Gemma 2", "gemma_1")
def _(patch: Patch) -> None:
    patch_config(patch, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)


@fault("4 norms before and after attention exchanged")
def _(patch: Patch) -> None:
    def decode_layer(layer: gemma2.DecoderLayer, *rest: Any) -> Array:
        exchanged = layer._replace(
            input_layernorm=layer.post_attention_layernorm, post_attention_layernorm=layer.input_layernorm
        )
        return original_layer(exchanged, *rest)

    patch.setattr(gemma2, "decode_layer", decode_layer)


@fault("4 eps outside the root", "large_eps")
def _(patch: Patch) -> None:
    def rms_norm(x: Array, scale: Array, eps: float) -> Array:
        root = np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True))
        return x / (root + np.float32(eps)) * (1 + widen(scale, x.dtype))

    patch_op(patch, rms_norm=rms_norm)


@fault("4 eps fixed", "large_eps")
def _(patch: Patch) -> None:
    patch_op(patch, rms_norm=lambda x, scale, eps: ops.rms_norm(x, scale, 1e-6))


@fault("6 null caps taken for the usual ones", "no_caps")
def _(patch: Patch) -> None:
    patch_config(patch, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)


@fault("6 soft cap before the scale")
def _(patch: Patch) -> None:
    def weights(query: Array, key: Array, ranges: masks.KeyRanges, scale: float, cap: float | None) -> Iterator[Array]:
        return original_weights(query, key, ranges, scale, None if cap is None else cap * scale)

    patch.setattr(ops, "group_weights", weights)


@fault("7 layer types by parity although the config lists them", "layer_types")
def _(patch: Patch) -> None:
    patch_config(patch, layer_types=("sliding_attention", "full_attention") * 2)


@fault("9 positions of the answer start anew")
def _(patch: Patch) -> None:
    table = rope.rotation_table
    restart = lambda positions, *rest: table(positions % 13, *rest)  # noqa: E731
    patch_op(patch, rotation_table=restart)


@fault("9 cache holds keys before their rotation")
def _(patch: Patch) -> None:
    unrotated: list[Array] = []  # the last one is the key: it is turned after the query
    write_rotated = KVCache.write

    def rotate(x: Array, *table: Array) -> Array:
        unrotated.append(x)
        return REFERENCE.rotate(x, *table)

    def write(self: KVCache, layer: int, key: Array, value: Array) -> tuple[Array, Array]:
        keys, values = write_rotated(self, layer, key, value)
        seen_now = keys.copy()
        keys[-len(key) :] = unrotated[-1]
        return seen_now, values

    patch_op(patch, rotate=rotate)
    patch.setattr(KVCache, "write", write)


@fault("10 LayerNorm eps fixed", "large_eps")
def _(patch: Patch) -> None:
    patch_op(patch, layer_norm=lambda x, scale, bias, eps: ops.layer_norm(x, scale, bias, 1e-6))


@fault("10 patches flattened with channels last")
def _(patch: Patch) -> None:
    patchify = siglip.patchify

    def channels_last(pixels: Array, size: int) -> Array:
        patches = patchify(pixels, size)
        return patches.reshape(len(patches), 3, -1).transpose(0, 2, 1).reshape(len(patches), -1)

    patch.setattr(siglip, "patchify", channels_last)


@fault("13 prefill reads a cache that is already cut to the window", "window_below_image")
def _(patch: Patch) -> None:
    def write(self: KVCache, layer: int, key: Array, value: Array) -> tuple[Array, Array]:
        keys, values = original_write(self, layer, key, value)
        if layer % 2 == 0:
            keys, values = keys.copy(), values.copy()
            keys[: max(0, len(keys) - 3)] = values[: max(0, len(values) - 3)] = 0
        return keys, values

    original_write = KVCache.write
    patch.setattr(KVCache, "write", write)


@fault("13 cache forgets what it must keep when decoding")
def _(patch: Patch) -> None:
    advance = KVCache.advance

    def forget(self: KVCache, tokens: int) -> None:
        advance(self, tokens)
        self.key_LSKH[:, max(0, self.length - 4)] = 0

    patch.setattr(KVCache, "advance", forget)


@fault("14 lm_head in the file ignored", "own_head")
def _(patch: Patch) -> None:
    assemble = tensor_table.assemble

    def tied(config: Any, tensors: dict[str, Array]) -> Any:
        return assemble(config, {name: t for name, t in tensors.items() if name != tensor_table.LM_HEAD})

    patch.setattr(loader, "assemble", tied)


@fault("14 padded rows of the vocabulary left out")
def _(patch: Patch) -> None:
    assemble = tensor_table.assemble

    def cut(config: Any, tensors: dict[str, Array]) -> Any:
        return assemble(config, {**tensors, loader.EMBEDDING: tensors[loader.EMBEDDING][: config.image_token_id]})

    patch.setattr(loader, "assemble", cut)


OTHER_DEFAULTS: dict[str, Any] = {
    "query_pre_attn_scalar": 16,  # the head width
    "sliding_window": 5,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-4,
}


def fault_of_default(name: str) -> None:
    @fault(f"14 another default of {name}", "omitted")
    def _(patch: Patch) -> None:
        patch.setitem(config_module.GEMMA2_DEFAULTS, name, OTHER_DEFAULTS[name])


for omitted_name in OTHER_DEFAULTS:
    fault_of_default(omitted_name)


@fault("14 embedding scale from the top-level hidden_size", "omitted")
def _(patch: Patch) -> None:
    patch.setattr(Gemma2Config, "embedding_scale", small_models.CASES["omitted"].top["hidden_size"] ** 0.5)


@fault("end of text is the first id of the list alone", "end_of_text")
def _(patch: Patch) -> None:
    opened = small_models.open_model

    def open_model(folder: Path) -> PaliGemma:
        model = opened(folder)
        return model._replace(config=dataclasses.replace(model.config, eos_token_ids=model.config.eos_token_ids[:1]))

    patch.setattr(small_models, "open_model", open_model)


@fault("end of text goes unnoticed", "end_of_text")
def _(patch: Patch) -> None:
    opened = small_models.open_model

    def open_model(folder: Path) -> PaliGemma:
        model = opened(folder)
        return model._replace(config=dataclasses.replace(model.config, eos_token_ids=()))

    patch.setattr(small_models, "open_model", open_model)


@fault("15 float32 with the bf16 embedding scale")
def _(patch: Patch) -> None:
    rounded = float(bf16_to_f32(f32_to_bf16(np.array([32**0.5], np.float32)))[0])
    patch.setattr(Gemma2Config, "embedding_scale", rounded)


@fault("15 RoPE frequencies rounded to bf16")
def _(patch: Patch) -> None:
    def table(positions: Array, head_dim: int, theta: float, dtype: Any) -> tuple[Array, Array]:
        frequency = (theta ** (-np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
        angle = positions[:, None] * bf16_to_f32(f32_to_bf16(frequency))
        return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)

    patch_op(patch, rotation_table=table)


@fault("images in the wrong order", "two_images")
def _(patch: Patch) -> None:
    encode = paligemma.encode_images
    reverse = lambda model, images, **rest: encode(model, images[::-1], **rest)  # noqa: E731
    patch.setattr(paligemma, "encode_images", reverse)


def check(case_name: str) -> None:
    record = golden_records.read_record(case_name)
    model = small_models.open_model(record.folder)
    golden_records.check_stages(model, record)
    golden_records.check_answer(model, record)


@pytest.mark.parametrize("name", FAULTS)
def test_the_golden_records_catch(name: str, monkeypatch: Patch) -> None:
    case_name, inject = FAULTS[name]
    check(case_name)
    inject(monkeypatch)
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        check(case_name)


@pytest.mark.parametrize("name", [name for name in BUGS if name != "no-antialias"])  # the record has no picture
def test_the_golden_records_catch_the_museum(name: str) -> None:
    record = golden_records.read_record("base")
    run = golden_records.run_of(record)
    check_run(run, record)
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        check_run(BUGS[name].inject(run), record)


def check_run(run: Run, record: golden_records.Record) -> None:
    golden_records.check_stages(run.model, record._replace(inputs=golden_records.inputs_of(run)))


# The names of each family, from those of the release.
FAMILIES: dict[str, Callable[[str], str]] = {
    "A": lambda name: name,
    "B": lambda name: name.replace(".vision_model.", "."),
    "C": lambda name: lifted(name.replace(".vision_model.", ".")),
    "D": lambda name: lifted(name),
}
NAME_RULES: dict[str, Callable[[str], str]] = {
    "model. goes": lambda name: name.removeprefix("model."),
    "language_model.model. is language_model.": lambda name: name.replace("language_model.model.", "language_model."),
    "vision_model. goes": lambda name: name.replace("vision_tower.vision_model.", "vision_tower."),
    "the head is not the decoder's": lambda name: name.replace("language_model.lm_head.", "lm_head."),
}
NEEDED_BY = {  # a family that each rule is for, and what is missing first without it
    "model. goes": ("C", "vision_tower.embeddings.patch_embedding.weight"),
    "language_model.model. is language_model.": ("B", "language_model.embed_tokens.weight"),
    "vision_model. goes": ("D", "vision_tower.embeddings.patch_embedding.weight"),
    "the head is not the decoder's": ("A", "lm_head.weight"),
}


def lifted(name: str) -> str:
    """As modules in memory are called: everything but the head below `model`."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")


def check_family(family: str, folder: Path) -> None:
    """The model with a head of its own, its tensors renamed, agrees with its record."""
    record = golden_records.read_record("own_head")
    tensors = read_tensors(record.folder / "model.safetensors").tensors
    shutil.copy(record.folder / "config.json", folder)
    renamed = {FAMILIES[family](name): tensor for name, tensor in tensors.items()}
    planned = {name: Planned(tensor.dtype, tensor.shape) for name, tensor in renamed.items()}
    with new_tensor_file(folder / "model.safetensors", planned) as write:
        for name, tensor in renamed.items():
            write(name, tensor)
    golden_records.check_stages(small_models.open_model(folder), record)


def canonical_name_without(rule: str, name: str) -> str:
    for other, apply in NAME_RULES.items():
        name = name if other == rule else apply(name)
    return name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_names_agrees_with_the_record(family: str, tmp_path: Path, monkeypatch: Patch) -> None:
    check_family(family, tmp_path)
    monkeypatch.setattr(loader, "canonical_name", lambda name: canonical_name_without("", name))
    check_family(family, tmp_path)  # the rules below are all there are


@pytest.mark.parametrize("rule", NAME_RULES)
def test_the_table_of_tensors_catches_14_a_rule_of_names_forgotten(
    rule: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(loader, "canonical_name", lambda name: canonical_name_without(rule, name))
    family, first_missing = NEEDED_BY[rule]
    with pytest.raises(CheckpointError, match=rf"problems;.*\n  missing +{re.escape(first_missing)}"):
        check_family(family, tmp_path)


def test_the_table_of_tensors_catches_14_the_width_of_the_top_level(monkeypatch: Patch) -> None:
    record = golden_records.read_record("omitted")
    parse = config_module.parse_config

    def misled(top: dict[str, Any], *rest: Any, **options: Any) -> Any:
        text = {**top["text_config"], "hidden_size": top["hidden_size"]}
        return parse({**top, "text_config": text, "projection_dim": top["hidden_size"]}, *rest, **options)

    monkeypatch.setattr(config_module, "parse_config", misled)
    with pytest.raises(CheckpointError, match=r"expected \(2048,\), got \(32,\)"):
        small_models.open_model(record.folder)


PIXEL_FAULTS: dict[str, Callable[[Array, int], Array]] = {
    "11 bilinear instead of bicubic": lambda image, side: pixel_values(read_image(image), side, "bilinear-aa"),
    "11 no antialiasing": lambda image, side: pixel_values(read_image(image), side, "bilinear"),
    "11 nearest pixel": lambda image, side: pixel_values(read_image(image), side, "nearest"),
    "11 blue first": lambda image, side: pixel_values(read_image(image), side)[::-1],
    "11 transposed": lambda image, side: pixel_values(read_image(image), side).transpose(0, 2, 1),
    "11 from 0 to 1": lambda image, side: (pixel_values(read_image(image), side) + 1) / 2,
    "11 divided at once, as torchvision does": lambda image, side: (
        (np.asarray(read_image(image).resize((side, side), 3), np.float32).transpose(2, 0, 1) - np.float32(127.5))
        / np.float32(127.5)
    ),
}


@pytest.mark.parametrize("name", PIXEL_FAULTS)
def test_the_golden_pixels_catch(name: str) -> None:
    with pytest.raises(AssertionError):
        golden_records.check_pixels(PIXEL_FAULTS[name])


def with_orientation(levels: Array, orientation: int) -> io.BytesIO:
    """A PNG file that says how its camera was held."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(levels).save(file, "PNG", exif=exif)
    return file


def check_colours() -> None:
    """What becomes RGB, and how, by the rules that `read_image` states."""
    row = np.array([[40, 80, 120]], np.uint8)
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.info["transparency"] = 1
    cases: list[tuple[Any, list[Any]]] = [
        (Image.new("RGBA", (1, 1), (255, 0, 100, 51)), [[[255, 204, 224]]]),
        (Image.new("LA", (1, 1), (100, 51)), [[[224, 224, 224]]]),
        (palette, [[[255, 255, 255]]]),
        (Image.fromarray(np.array([[0, 300, 26_000, 65_535]], np.uint16)), [[[n] * 3 for n in (0, 1, 101, 255)]]),
        (with_orientation(row, 3), [[[n] * 3 for n in (120, 80, 40)]]),
        (with_orientation(row, 6), [[[n] * 3] for n in (40, 80, 120)]),
        (with_orientation(row, 8), [[[n] * 3] for n in (120, 80, 40)]),
        (Image.new("CMYK", (1, 1), (255, 0, 0, 0)), [[[0, 255, 255]]]),
        (Image.new("L", (1, 1), 77), [[[77, 77, 77]]]),
    ]
    for source, expected in cases:
        np.testing.assert_array_equal(np.asarray(read_image(source)), expected, err_msg=str(source))


def test_colours_are_those_of_the_rules() -> None:
    check_colours()


def over_black(image: Image.Image, name: str) -> Image.Image:
    if not image.has_transparency_data:
        return original_to_rgb(image, name)
    black = Image.new("RGBA", image.size, "black")
    black.alpha_composite(image.convert("RGBA"))
    return black.convert("RGB")


original_to_rgb = image_module._to_rgb
turned = {**image_module._TRANSPOSE, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
COLOUR_FAULTS: dict[str, tuple[str, Any]] = {
    "11 alpha dropped": (
        "_to_rgb",
        lambda image, name: original_to_rgb(image, name) if image.mode == "I;16" else image.convert("RGB"),
    ),
    "11 transparent over black": ("_to_rgb", over_black),
    "11 16 bits saturated": ("_grey_levels", lambda strip: np.clip(np.asarray(strip), 0, 255).astype(np.uint8)),
    "11 16 bits wrapped": ("_grey_levels", lambda strip: np.asarray(strip).astype(np.uint8)),
    "11 orientation ignored": ("_TRANSPOSE", {}),
    "11 orientation turned the other way": ("_TRANSPOSE", turned),
}


@pytest.mark.parametrize("name", COLOUR_FAULTS)
def test_the_colours_catch(name: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(image_module, *COLOUR_FAULTS[name])
    with pytest.raises(AssertionError):
        check_colours()


def check_prompts(folder: Path) -> None:
    """All prompts of the golden file become the ids that Transformers' processor made of them."""
    golden = json.loads((golden_records.GOLDEN / "inputs" / "prompts.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.load(folder, image_token_id=2352)
    assert len(golden["rows"]) > 15
    for row in golden["rows"]:
        ids = prompt_module.prompt_ids(
            tokenizer, row["prompt"], num_images=row["images"], num_image_tokens=golden["image_tokens"]
        )
        assert ids == row["ids"], row["prompt"]


def test_prompts_are_those_of_the_golden_file(small_folder: Path) -> None:
    check_prompts(small_folder)


def of_the_museum(name: str) -> Callable[[list[int]], list[int]]:
    """What a bug makes of prompt ids."""
    model = small_models.open_model(golden_records.GOLDEN / "base")
    model = model._replace(config=dataclasses.replace(model.config, image_token_id=2352))
    return lambda ids: list(BUGS[name].inject(Run(model, (), tuple(ids))).prompt_ids)


PROMPT_FAULTS: dict[str, Callable[[list[int]], list[int]]] = {
    "12 no newline": of_the_museum("missing-newline"),
    "12 two newlines": lambda ids: [*ids, ids[-1]],
    "12 no <bos>": of_the_museum("missing-bos"),
    "12 <bos> before the images": of_the_museum("bos-first"),
    "12 one image token missing": lambda ids: ids[1:],
}


@pytest.mark.parametrize("name", PROMPT_FAULTS)
def test_the_golden_prompts_catch(name: str, small_folder: Path, monkeypatch: Patch) -> None:
    original = prompt_module.prompt_ids
    change = PROMPT_FAULTS[name]
    monkeypatch.setattr(prompt_module, "prompt_ids", lambda *args, **options: change(original(*args, **options)))
    with pytest.raises(AssertionError):
        check_prompts(small_folder)


def test_the_golden_prompts_catch_12_a_dummy_space(small_folder: Path, monkeypatch: Patch) -> None:
    tokenize = Tokenizer.tokenize
    monkeypatch.setattr(Tokenizer, "tokenize", lambda self, text: tokenize(self, text.replace("<bos>", "<bos> ")))
    with pytest.raises(AssertionError):
        check_prompts(small_folder)


RUN_FAULTS = {"12 newlines one by one": r"(?<=\n)(?=\n)", "12 spaces one by one": r"(?<= )(?= )"}


@pytest.mark.parametrize("name", RUN_FAULTS)
def test_the_golden_prompts_catch_runs(name: str, small_folder: Path, monkeypatch: Patch) -> None:
    """A run of newlines or spaces is one token; cut only inside runs, so that nothing else changes."""
    tokenize = Tokenizer.tokenize

    def cut(self: Tokenizer, text: str) -> list[int]:
        return [token_id for part in re.split(RUN_FAULTS[name], text) for token_id in tokenize(self, part)]

    monkeypatch.setattr(Tokenizer, "tokenize", cut)
    with pytest.raises(AssertionError):
        check_prompts(small_folder)
