"""config.json as it is released, and everything else that may stand there."""

import ast
import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_checkpoint

from pg2ref.checkpoint.loader import load_checkpoint
from pg2ref.checkpoint.tensor_table import expected_shapes
from pg2ref.config import Gemma2Config, PaliGemmaConfig, SiglipConfig, parse_config, read_config
from pg2ref.errors import ConfigError
from pg2ref.generation.generate import generate
from pg2ref.generation.sampling import greedy
from pg2ref.model import paligemma
from pg2ref.model.paligemma import PaliGemma
from pg2ref.policy import Policy
from pg2ref.published import PUBLISHED, PUBLISHED_1

# Gemma 2 report, table 1: hidden, layers, heads, key heads, head width, MLP width, query scalar, score scale.
TEXT_TABLE = {
    "3b": (2304, 26, 8, 4, 256, 9216, 256, 0.0625),
    "10b": (3584, 42, 16, 8, 256, 14336, 256, 0.0625),
    "28b": (4608, 46, 32, 16, 128, 36864, 144, 1 / 12),
}
# Counted by Transformers on models without weights.
IMAGE_TOKENS = {224: 256, 448: 1024, 896: 4096}
VISION_PARAMETERS = {224: 412_442_352, 448: 413_327_088, 896: 416_866_032}
TEXT_PARAMETERS = {"3b": 2_617_143_552, "10b": 9_246_064_128, "28b": 27_232_731_648}
PROJECTOR_PARAMETERS = {"3b": 2_656_512, "10b": 4_132_352, "28b": 5_313_024}
PARAMETERS = {
    "3b-224": 3_032_242_416,
    "3b-448": 3_033_127_152,
    "3b-896": 3_036_666_096,
    "10b-224": 9_662_638_832,
    "10b-448": 9_663_523_568,
    "10b-896": 9_667_062_512,
    "28b-224": 27_650_487_024,
    "28b-448": 27_651_371_760,
    "28b-896": 27_654_910_704,
}
TENSORS = {"3b": 727, "10b": 903, "28b": 947}


@pytest.fixture
def small() -> dict[str, Any]:
    return copy.deepcopy(random_checkpoint.released_config("small"))


# The published sizes.


def test_nine_sizes_are_published() -> None:
    assert set(PUBLISHED) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_numbers(name: str) -> None:
    config, (size, pixels) = PUBLISHED[name], name.split("-")
    text, vision = config.text, config.vision
    assert TEXT_TABLE[size][:-1] == (
        text.hidden_size,
        text.num_hidden_layers,
        text.num_attention_heads,
        text.num_key_value_heads,
        text.head_dim,
        text.intermediate_size,
        text.query_pre_attn_scalar,
    )
    assert text.query_scale == pytest.approx(TEXT_TABLE[size][-1], rel=1e-15)
    assert text.embedding_scale == math.sqrt(TEXT_TABLE[size][0])
    assert (text.attn_logit_softcapping, text.final_logit_softcapping) == (50.0, 30.0)
    assert (text.rope_theta, text.rms_norm_eps) == (10000.0, 1e-6)
    assert (text.max_position_embeddings, text.vocab_size) == (8192, 257216)
    assert text.sliding_window == 4096
    assert text.layer_types == ("sliding_attention", "full_attention") * (text.num_hidden_layers // 2)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1152, 27, 16)
    assert (vision.intermediate_size, vision.patch_size, vision.num_channels) == (4304, 14, 3)
    assert (vision.head_dim, vision.layer_norm_eps, vision.image_size) == (72, 1e-6, int(pixels))
    assert vision.num_image_tokens == IMAGE_TOKENS[int(pixels)]
    assert (config.image_token_id, config.eos_token_ids, config.tie_word_embeddings) == (257152, (1,), True)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameters(name: str) -> None:
    size, pixels = name.split("-")
    shapes = expected_shapes(PUBLISHED[name])
    counts = {tensor: math.prod(shape) for tensor, shape in shapes.items()}

    def count(start: str) -> int:
        return sum(number for tensor, number in counts.items() if tensor.startswith(start))

    assert len(shapes) == TENSORS[size]
    assert count("") == PARAMETERS[name]
    assert count("vision_tower.") == VISION_PARAMETERS[int(pixels)]
    assert count("multi_modal_projector.") == PROJECTOR_PARAMETERS[size]
    assert count("language_model.") == TEXT_PARAMETERS[size]
    untied = expected_shapes(replace(PUBLISHED[name], tie_word_embeddings=False))
    assert set(untied) - set(shapes) == {"lm_head.weight"}
    assert untied["lm_head.weight"] == shapes["language_model.embed_tokens.weight"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_released_files_are_read_back(name: str) -> None:
    assert parse_config(random_checkpoint.released_config(name)) == PUBLISHED[name]


def test_a_released_file_through_the_disk(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(random_checkpoint.released_config("10b-448")))
    assert read_config(tmp_path / "config.json") == PUBLISHED["10b-448"]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 107], "max_length": 20}')
    assert read_config(tmp_path / "config.json").eos_token_ids == (1, 107)


# What is filled in, and other spellings.


def test_omitted_fields_are_those_of_transformers() -> None:
    """The released 3B omits nearly everything."""
    gemma2 = {"text_config": {"model_type": "gemma2"}, "vision_config": {}, "image_token_index": 257152}
    assert parse_config(gemma2).text == replace(PUBLISHED["3b-224"].text, vocab_size=256000)
    assert parse_config(gemma2).vision == SiglipConfig(
        image_size=224,
        patch_size=16,
        num_channels=3,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        layer_norm_eps=1e-6,
    )


def test_top_level_defaults() -> None:
    config = parse_config({"text_config": {}, "vision_config": {}, "image_token_index": 257152})
    assert (config.eos_token_ids, config.tie_word_embeddings) == ((1,), True)


@pytest.mark.parametrize("spelling", ["image_token_index", "image_token_id"])
def test_both_spellings_of_the_image_token(spelling: str, small: dict[str, Any]) -> None:
    del small["image_token_index"]
    assert parse_config({**small, spelling: 2400}).image_token_id == 2400


def test_both_spellings_of_theta(small: dict[str, Any]) -> None:
    small["text_config"]["rope_theta"] = 500.0
    assert parse_config(small).text.rope_theta == 500.0
    del small["text_config"]["rope_theta"]
    small["text_config"]["rope_parameters"] = {"rope_theta": 600.0, "rope_type": "default"}
    assert parse_config(small).text.rope_theta == 600.0
    small["text_config"]["rope_parameters"] = {"rope_type": "default"}
    assert parse_config(small).text.rope_theta == 10000.0
    small["text_config"]["rope_parameters"] = None
    assert parse_config(small).text.rope_theta == 10000.0


@pytest.mark.parametrize("name", ["attn_logit_softcapping", "final_logit_softcapping", "sliding_window"])
def test_null_switches_a_feature_off(name: str, small: dict[str, Any]) -> None:
    small["text_config"][name] = None
    text = parse_config(small).text
    assert getattr(text, name) is None


def test_explicit_layer_types(small: dict[str, Any]) -> None:
    types = ["full_attention", "full_attention", "sliding_attention", "full_attention"]
    small["text_config"]["layer_types"] = types
    text = parse_config(small).text
    assert text.layer_types == tuple(types)
    small["text_config"]["layer_types"] = None
    assert parse_config(small).text.layer_types == ("sliding_attention", "full_attention") * 2


@pytest.mark.parametrize(
    ("generation", "top", "text", "expected"),
    [
        (5, 6, [7, 8], (5,)),
        ([5, 9], 6, [7, 8], (5, 9)),
        (..., 6, [7, 8], (6,)),
        (..., [6, 3], 7, (6, 3)),
        (..., ..., [7, 8], (7, 8)),
        (..., ..., 0, (0,)),
        (..., ..., ..., (1,)),
        (None, 6, 7, (6,)),
        (None, None, 7, (7,)),
        (None, None, None, (1,)),
    ],
)
def test_whose_end_token_counts(
    generation: Any, top: Any, text: Any, expected: tuple[int, ...], small: dict[str, Any]
) -> None:
    """generation_config.json before the top level before text_config, as in Transformers; null says nothing."""
    small.pop("eos_token_id")
    for table, value in ((small, top), (small["text_config"], text)):
        if value is not ...:
            table["eos_token_id"] = value
    assert parse_config(small, {} if generation is ... else {"eos_token_id": generation}).eos_token_ids == expected


@pytest.mark.parametrize("name", ["_vocab_size", "hidden_size", "torch_dtype", "dtype", "transformers_version"])
def test_bookkeeping_changes_nothing(name: str, small: dict[str, Any]) -> None:
    expected = parse_config(small)
    assert parse_config({**small, name: 2048}) == expected
    small["vision_config"] |= {"num_positions": 4096, "num_image_tokens": 9}  # unreliable in released files
    assert parse_config(small).vision.num_image_tokens == 16


# What is refused.

Change = Callable[[dict[str, Any]], Any]


def set_text(**values: Any) -> Change:
    return lambda config: config["text_config"].update(values)


def set_vision(**values: Any) -> Change:
    return lambda config: config["vision_config"].update(values)


def set_top(**values: Any) -> Change:
    return lambda config: config.update(values)


NUMBERS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "sliding_window")
BAD_WHOLE: list[Any] = [0, -1, 2.0, "8", True, [8], {}, 10**30, math.nan, math.inf]
BAD_REAL: list[Any] = [0, -1.5, "8", True, [8], {}, math.nan, math.inf, -math.inf, 10**400]

REFUSED: dict[str, tuple[Change, str]] = {
    "unknown top field": (set_top(rotary_percent=1), "config.json: unknown field rotary_percent"),
    "unknown text field": (set_text(qk_norm=True), "text_config: unknown field qk_norm"),
    "unknown vision field": (set_vision(window=7), "vision_config: unknown field window"),
    "unknown rope field": (
        set_text(rope_parameters={"rope_theta": 1.0, "factor": 2}),
        "rope_parameters: unknown field factor",
    ),
    "another rope": (set_text(rope_parameters={"rope_type": "yarn"}), "rope_type is 'yarn'"),
    "rope_parameters is no object": (set_text(rope_parameters=[1]), "rope_parameters is missing or no object"),
    "rope_scaling": (set_text(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling is"),
    "attention bias": (set_text(attention_bias=True), "attention_bias is True"),
    "text activation": (set_text(hidden_activation="gelu"), "hidden_activation is 'gelu'"),
    "vision activation": (set_vision(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "text model": (set_text(model_type="gemma3_text"), "model_type is 'gemma3_text'"),
    "vision model": (set_vision(model_type="clip_vision_model"), "model_type is 'clip_vision_model'"),
    "whole model": (set_top(model_type="llava"), "model_type is 'llava'"),
    "no text config": (lambda config: config.pop("text_config"), "text_config is missing or no object"),
    "no vision config": (lambda config: config.pop("vision_config"), "vision_config is missing or no object"),
    "text config is a list": (set_top(text_config=[]), "text_config is missing or no object"),
    "projection": (set_top(projection_dim=2048), "projection_dim is 2048, expected text_config.hidden_size = 72"),
    "null width": (set_text(hidden_size=None), "hidden_size is None, expected a whole number above 0"),
    "null eps": (set_vision(layer_norm_eps=None), "layer_norm_eps is None, expected a number above 0"),
    "patches that do not fit": (set_vision(image_size=57), "image_size is 57, expected a multiple of patch_size"),
    "vision heads": (set_vision(num_attention_heads=5), "hidden_size is 48, expected a multiple"),
    "query heads": (set_text(num_key_value_heads=4), "num_attention_heads is 6, expected a multiple"),
    "odd head": (set_text(head_dim=15), "head_dim is 15, expected a multiple"),
    "too many layers": (set_text(num_hidden_layers=513), "num_hidden_layers must be at most 512"),
    "too few layer types": (set_text(layer_types=["full_attention"] * 3), "layer_types must hold 4 entries"),
    "no layer types": (set_text(layer_types=[]), "layer_types must hold 4 entries"),
    "layer types are a word": (set_text(layer_types="full_attention"), "layer_types must hold 4 entries"),
    "another layer type": (set_text(layer_types=["chunked_attention"] * 4), "layer_types must hold 4 entries"),
    "layer types are lists": (set_text(layer_types=[[], [], [], []]), "layer_types must hold 4 entries"),
    "tied is a word": (set_top(tie_word_embeddings="no"), "tie_word_embeddings is 'no', expected true or false"),
    "tied is a number": (set_top(tie_word_embeddings=1), "tie_word_embeddings is 1, expected true or false"),
    "end token is a word": (set_top(eos_token_id="<eos>"), "eos_token_id is '<eos>'"),
    "end token is a bool": (set_top(eos_token_id=True), "eos_token_id is True"),
    "end token below zero": (set_top(eos_token_id=[1, -1]), "eos_token_id is -1, expected a whole number from 0"),
    "no end token": (set_top(eos_token_id=[]), "eos_token_id is an empty list"),
    "no image token": (lambda config: config.pop("image_token_index"), "image_token_index is missing"),
    "image token is null": (set_top(image_token_index=None), "image_token_index is missing"),
    "width beyond all bounds": (set_text(hidden_size=10**8), "expected a whole number above 0, up to 16777216"),
    "eps beyond all bounds": (set_text(rms_norm_eps=1e30), "expected a number above 0, up to 16777216"),
    "theta beyond a float": (set_text(rope_theta=math.inf), "expected a number above 0, up to 1.797"),
    "image token is a bool": (set_top(image_token_index=False), "image_token_index is False"),
    "image token is a fraction": (set_top(image_token_index=5.5), "image_token_index is 5.5"),
    **{
        f"text {name} {value!s:.10}": (set_text(**{name: value}), f"text_config: {name} is")
        for name in NUMBERS
        for value in BAD_WHOLE
    },
    **{
        f"text {name} {value!s:.10}": (set_text(**{name: value}), f"text_config: {name} is")
        for name in ("rope_theta", "rms_norm_eps", "attn_logit_softcapping", "query_pre_attn_scalar")
        for value in BAD_REAL
    },
    **{
        f"vision patch_size {value!s:.10}": (set_vision(patch_size=value), "vision_config: patch_size is")
        for value in BAD_WHOLE
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, small: dict[str, Any]) -> None:
    change, complaint = REFUSED[name]
    parse_config(small)
    change(small)
    with pytest.raises(ConfigError) as raised:
        parse_config(small)
    message = str(raised.value)
    assert complaint in message
    assert message.startswith("config.json")
    assert "\n" not in message
    assert raised.value.exit_code == 5


# PaliGemma 1.

PALIGEMMA_1: dict[str, Any] = {  # config.json of the released 3B, but for what changes nothing
    "model_type": "paligemma",
    "image_token_index": 257152,
    "hidden_size": 2048,
    "projection_dim": 2048,
    "text_config": {
        "model_type": "gemma",
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_attention_heads": 8,
        "num_hidden_layers": 18,
        "num_image_tokens": 256,
        "num_key_value_heads": 1,
        "torch_dtype": "float32",
        "vocab_size": 257216,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "num_image_tokens": 256,
        "patch_size": 14,
        "projection_dim": 2048,
        "projector_hidden_act": "gelu_fast",
        "vision_use_head": False,
    },
}


def test_paligemma_1_is_published_too() -> None:
    config = parse_config(PALIGEMMA_1)
    assert config == PUBLISHED_1["3b-224"]
    text, shapes = config.text, expected_shapes(config)
    assert (text.post_norms, text.sliding_window, text.attn_logit_softcapping, text.final_logit_softcapping) == (
        False,
        None,
        None,
        None,
    )
    assert (text.query_scale, text.embedding_scale) == (256**-0.5, 2048**0.5)
    assert len(shapes) == 603  # this and the next counted by Transformers
    assert sum(map(math.prod, shapes.values())) == 2_923_466_480
    assert [PUBLISHED_1[f"3b-{side}"].vision for side in IMAGE_TOKENS] == [
        PUBLISHED[f"3b-{side}"].vision for side in IMAGE_TOKENS
    ]


def test_gemma_1_has_its_own_defaults_and_fields() -> None:
    """Gemma 7B's; a text_config that does not say what it is is Gemma 1's, as for Transformers."""
    config: dict[str, Any] = {"text_config": {}, "vision_config": {}, "image_token_index": 257152}
    text = parse_config(config).text
    assert (text.hidden_size, text.num_hidden_layers, text.intermediate_size) == (3072, 28, 24576)
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (16, 16, 256)
    assert text.layer_types == ("full_attention",) * 28
    config["text_config"] = {"hidden_act": "gelu", "hidden_activation": None}
    assert parse_config(config).text == text
    config["text_config"] = {"hidden_act": "relu"}
    with pytest.raises(ConfigError, match="hidden_act is 'relu', pg2ref computes 'gelu_pytorch_tanh' or 'gelu' only"):
        parse_config(config)
    config["text_config"] = {"sliding_window": 4096}
    with pytest.raises(ConfigError, match="unknown field sliding_window"):
        parse_config(config)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe\x80",
        b"[]",
        b'"text"',
        b"null",
        b"{",
        b'{"text_config": {}} {}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"vision_config": {}, "text_config": {"hidden_size": ' + b"9" * 5000 + b"}}",
        b'\xef\xbb\xbf{"text_config": {}}',
    ],
    ids=lambda content: repr(content[:12]),
)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_hostile_files_are_refused(name: str, content: bytes, tmp_path: Path, small: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small))
    read_config(tmp_path / "config.json")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{name}: expected a JSON object, got"):
        read_config(tmp_path / "config.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is missing in"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(tmp_path / "config.json")


# Every field is read: one that is parsed and then forgotten is how wrong models run without complaint.

PACKAGE = Path(__file__).parent.parent / "pg2ref"
RECORDS = (SiglipConfig, Gemma2Config, PaliGemmaConfig, Policy)
DERIVED = {"query_scale", "embedding_scale", "head_dim", "num_image_tokens"}


def attributes_read(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Load):
            yield part.attr


def test_every_field_is_read_somewhere() -> None:
    """By syntax: in a function outside the record's own class, or in a property of it that is read outside."""
    outside: set[str] = set()
    inside: dict[str, set[str]] = {}  # property -> what it reads
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name in {record.__name__ for record in RECORDS}:
                methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
                inside |= {method.name: set(attributes_read(method)) for method in methods}
            elif path.name != "config.py":  # which checks fields, but computes nothing with them
                outside |= set(attributes_read(node))
    assert set(inside) == DERIVED
    read = outside.union(*(inside[name] for name in inside if name in outside))
    names = {field.name for record in RECORDS[:3] for field in fields(record)} | set(Policy._fields)
    assert names - read == set()


def test_every_field_is_read_on_the_way_to_an_answer(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By running it: the names alone cannot tell the text's hidden_size from the vision tower's."""
    config = load_checkpoint(small_folder).config
    read: dict[type, set[str]] = {SiglipConfig: set(), Gemma2Config: set(), PaliGemmaConfig: set()}
    for record, names in read.items():

        def getattribute(self: object, name: str, names: set[str] = names) -> Any:
            names.add(name)
            return object.__getattribute__(self, name)

        monkeypatch.setattr(record, "__getattribute__", getattribute)
    params = load_checkpoint(small_folder).params
    for names in read.values():
        names.discard("__dict__")
    model = PaliGemma(params, config)
    pixels = np.zeros((3, 56, 56), np.float32)
    embeddings = paligemma.encode_images(model, [pixels])
    prompt = [config.image_token_id] * 16 + [2, 108]
    assert len(list(generate(model, embeddings, prompt, sampler=greedy, max_new_tokens=2))) == 2
    assert {field.name for field in fields(SiglipConfig)} <= read[SiglipConfig]
    unread = {field.name for field in fields(Gemma2Config)} - read[Gemma2Config]
    assert unread == {"max_position_embeddings"}  # api.py bounds the length of an answer with it
    assert {field.name for field in fields(PaliGemmaConfig)} <= read[PaliGemmaConfig]


def test_two_names_of_one_id_must_agree(small: dict[str, Any]) -> None:
    small["image_token_id"] = small["image_token_index"]
    assert parse_config(small).image_token_id == small["image_token_index"]
    small["image_token_id"] += 1
    with pytest.raises(ConfigError, match="two names of one number"):
        parse_config(small)


def test_rope_theta_beside_rope_parameters_counts(small: dict[str, Any]) -> None:
    """As in Transformers, which merges the two places."""
    small["text_config"] |= {"rope_theta": 50.0, "rope_parameters": {"rope_type": "default"}}
    assert parse_config(small).text.rope_theta == 50.0
    small["text_config"]["rope_parameters"]["rope_theta"] = 60.0
    with pytest.raises(ConfigError, match=r"rope_theta is 50.0, but 60.0 in rope_parameters"):
        parse_config(small)


def test_a_large_rope_theta_is_no_mistake(small: dict[str, Any]) -> None:
    for theta in (1e9, 10**30):
        small["text_config"]["rope_theta"] = theta
        found = parse_config(small).text.rope_theta
        assert (found, type(found)) == (float(theta), float)
