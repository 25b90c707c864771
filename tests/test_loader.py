"""A checkpoint folder into parameters: every family of names, every type, and all that may be wrong with one."""

import json
import math
import mmap
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pg2ref.arrays import Array, bf16_to_f32
from pg2ref.checkpoint import loader
from pg2ref.checkpoint.loader import load_checkpoint, not_finite_tensors
from pg2ref.checkpoint.safetensors_file import DTYPES, read_tensors
from pg2ref.checkpoint.tensor_table import canonical_name, expected_shapes, is_ignored
from pg2ref.errors import CheckpointError, ConfigError
from pg2ref.model.paligemma import Params
from pg2ref.published import PUBLISHED

STORED_NAMES = {dtype: name for name, dtype in DTYPES.items()}
SMALL_FILES = ("config.json", "generation_config.json", "preprocessor_config.json")
EMBEDDING = "language_model.model.embed_tokens.weight"

Tensors = dict[str, Array]


def write_safetensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """The format in ten lines; uint16 is BF16."""
    header, begin = {}, 0
    for name, tensor in tensors.items():
        end = begin + tensor.nbytes
        header[name] = {
            "dtype": STORED_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture(scope="module")
def released(small_folder: Path) -> Tensors:
    """The small checkpoint's tensors under the released names, family A."""
    return read_tensors(small_folder / "model.safetensors").tensors


@pytest.fixture
def folder(small_folder: Path, tmp_path: Path) -> Path:
    """Its JSON files without its weights."""
    for name in SMALL_FILES:
        shutil.copy(small_folder / name, tmp_path)
    return tmp_path


def write(folder: Path, tensors: Mapping[str, Array]) -> Path:
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def leaves(params: Any) -> Iterator[Array]:
    """Every array of nested tuples."""
    if isinstance(params, tuple):
        for part in params:
            yield from leaves(part)
    else:
        yield params


def assert_same_params(actual: Params, expected: Params) -> None:
    ours, theirs = list(leaves(actual)), list(leaves(expected))
    assert len(ours) == len(theirs) == 3 + 3 * 16 + 2 + 2 + 4 * 11 + 3
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_array_equal(mine, other)


def edit_json(path: Path, **changed: Any) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changed}))


# Names.

FAMILIES: dict[str, Callable[[str], str]] = {
    "A release": lambda name: name,
    "B saved by 5.23": lambda name: name.replace("vision_tower.vision_model.", "vision_tower."),
    "C in memory": lambda name: (
        "model." + name.replace("vision_model.", "").replace("language_model.model.", "language_model.")
    ),
    "D of 4.52": lambda name: "model." + name.replace("language_model.model.", "language_model."),
}
SPELLINGS = [
    ("language_model.model.layers.3.mlp.up_proj.weight", "language_model.layers.3.mlp.up_proj.weight"),
    ("model.language_model.layers.3.mlp.up_proj.weight", "language_model.layers.3.mlp.up_proj.weight"),
    ("vision_tower.vision_model.post_layernorm.bias", "vision_tower.post_layernorm.bias"),
    ("vision_tower.post_layernorm.bias", "vision_tower.post_layernorm.bias"),
    ("model.vision_tower.vision_model.post_layernorm.bias", "vision_tower.post_layernorm.bias"),
    ("model.multi_modal_projector.linear.bias", "multi_modal_projector.linear.bias"),
    ("language_model.lm_head.weight", "lm_head.weight"),
    ("lm_head.weight", "lm_head.weight"),
]


@pytest.mark.parametrize(("name", "canonical"), SPELLINGS)
def test_canonical_names(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical
    assert canonical_name(canonical) == canonical


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_names(family: str, folder: Path, small_folder: Path, released: Tensors) -> None:
    rename = FAMILIES[family]
    write(folder, {rename(name): tensor for name, tensor in reversed(released.items())})
    loaded = load_checkpoint(folder)
    assert_same_params(loaded.params, load_checkpoint(small_folder).params)
    assert set(loaded.tensors) == {rename(name) for name in released}


def test_every_leaf_is_in_its_place(small_folder: Path, released: Tensors) -> None:
    params = load_checkpoint(small_folder).params
    text, vision = params.language_model, params.vision_tower
    at, tower = "language_model.model.", "vision_tower.vision_model."
    expected = {
        f"{at}embed_tokens.weight": text.embed_tokens,
        f"{at}norm.weight": text.norm,
        "multi_modal_projector.linear.weight": params.multi_modal_projector.weight,
        "multi_modal_projector.linear.bias": params.multi_modal_projector.bias,
        f"{tower}embeddings.patch_embedding.weight": vision.patch_embedding.weight,
        f"{tower}embeddings.patch_embedding.bias": vision.patch_embedding.bias,
        f"{tower}embeddings.position_embedding.weight": vision.position_embedding,
        f"{tower}post_layernorm.weight": vision.post_layernorm.weight,
        f"{tower}post_layernorm.bias": vision.post_layernorm.bias,
    }
    for i, layer in enumerate(text.layers):
        at = f"language_model.model.layers.{i}."
        expected |= {
            f"{at}input_layernorm.weight": layer.input_layernorm,
            f"{at}post_attention_layernorm.weight": layer.post_attention_layernorm,
            f"{at}pre_feedforward_layernorm.weight": layer.pre_feedforward_layernorm,
            f"{at}post_feedforward_layernorm.weight": layer.post_feedforward_layernorm,
            f"{at}self_attn.q_proj.weight": layer.q_proj,
            f"{at}self_attn.k_proj.weight": layer.k_proj,
            f"{at}self_attn.v_proj.weight": layer.v_proj,
            f"{at}self_attn.o_proj.weight": layer.o_proj,
            f"{at}mlp.gate_proj.weight": layer.gate_proj,
            f"{at}mlp.up_proj.weight": layer.up_proj,
            f"{at}mlp.down_proj.weight": layer.down_proj,
        }
    for i, layer in enumerate(vision.layers):
        at = f"vision_tower.vision_model.encoder.layers.{i}."
        for path, affine in {
            "layer_norm1": layer.layer_norm1,
            "layer_norm2": layer.layer_norm2,
            "self_attn.q_proj": layer.q_proj,
            "self_attn.k_proj": layer.k_proj,
            "self_attn.v_proj": layer.v_proj,
            "self_attn.out_proj": layer.out_proj,
            "mlp.fc1": layer.fc1,
            "mlp.fc2": layer.fc2,
        }.items():
            expected |= {f"{at}{path}.weight": affine.weight, f"{at}{path}.bias": affine.bias}
    assert set(expected) == set(released)
    for name, tensor in released.items():
        np.testing.assert_array_equal(expected[name], tensor)
    assert text.lm_head is text.embed_tokens


EXTRAS = [
    "vision_tower.vision_model.head.probe",
    "vision_tower.vision_model.head.attention.in_proj_weight",
    "vision_tower.head.mlp.fc1.bias",
    "vision_tower.vision_model.embeddings.position_ids",
    "model.vision_tower.embeddings.position_ids",
    "language_model.model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.language_model.rotary_emb.inv_freq",
]


def test_extras_are_ignored(folder: Path, small_folder: Path, released: Tensors) -> None:
    extras = {name: np.arange(7, dtype=np.int64) for name in EXTRAS}
    write(folder, {**released, **extras})
    assert_same_params(load_checkpoint(folder).params, load_checkpoint(small_folder).params)


def test_nothing_that_is_needed_is_ignored() -> None:
    for name in expected_shapes(PUBLISHED["3b-224"]):
        assert not is_ignored(name)
        assert canonical_name(name) == name


@pytest.mark.parametrize(
    "twin", ["model.language_model.norm.weight", "language_model.norm.weight", "model.language_model.model.norm.weight"]
)
def test_a_tensor_under_two_names_is_refused(twin: str, folder: Path, released: Tensors) -> None:
    write(folder, {**released, twin: released["language_model.model.norm.weight"]})
    with pytest.raises(CheckpointError, match=rf"doubled +{twin} is another name") as raised:
        load_checkpoint(folder)
    assert raised.value.exit_code == 5


# The head.


@pytest.mark.parametrize("head", ["lm_head.weight", "language_model.lm_head.weight"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_its_own_is_used(head: str, tied: bool, folder: Path, released: Tensors) -> None:
    """Even where the config says tied, as in Transformers 5.23."""
    edit_json(folder / "config.json", tie_word_embeddings=tied)
    own = released[EMBEDDING] ^ 0x8000
    text = load_checkpoint(write(folder, {**released, head: own})).params.language_model
    np.testing.assert_array_equal(text.lm_head, own)
    np.testing.assert_array_equal(text.embed_tokens, released[EMBEDDING])


def test_a_head_alone_is_the_embedding_too(folder: Path, small_folder: Path, released: Tensors) -> None:
    renamed = {("lm_head.weight" if name == EMBEDDING else name): tensor for name, tensor in released.items()}
    assert_same_params(load_checkpoint(write(folder, renamed)).params, load_checkpoint(small_folder).params)
    edit_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"missing +language_model\.embed_tokens\.weight"):
        load_checkpoint(folder)


def test_an_untied_head_must_be_there(folder: Path, released: Tensors) -> None:
    edit_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"1 problem.*\n  missing +lm_head\.weight \(2432, 72\)"):
        load_checkpoint(write(folder, released))


def test_a_head_of_another_shape_is_refused(folder: Path, released: Tensors) -> None:
    write(folder, {**released, "lm_head.weight": np.zeros((2368, 72), np.uint16)})
    with pytest.raises(CheckpointError, match=r"wrong shape lm_head\.weight: expected \(2432, 72\), got \(2368, 72\)"):
        load_checkpoint(folder)


# Types.


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "f32"), (np.float16, "f16")])
def test_other_floats_load(dtype: Any, name: str, folder: Path, released: Tensors) -> None:
    converted = {key: bf16_to_f32(tensor).astype(dtype) for key, tensor in released.items()}
    checkpoint = load_checkpoint(write(folder, converted))
    assert checkpoint.weight_type == name
    assert {leaf.dtype for leaf in leaves(checkpoint.params)} == {np.dtype(dtype)}
    np.testing.assert_array_equal(checkpoint.params.language_model.embed_tokens, converted[EMBEDDING])


def test_mixed_types_load(folder: Path, released: Tensors) -> None:
    mixed = {**released, EMBEDDING: bf16_to_f32(released[EMBEDDING])}
    assert load_checkpoint(write(folder, mixed)).weight_type == "bf16+f32"


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.float64, np.bool_])
def test_other_types_are_refused(dtype: Any, folder: Path, released: Tensors) -> None:
    write(folder, {**released, "language_model.model.norm.weight": np.zeros(72, dtype)})
    with pytest.raises(
        CheckpointError, match=r"wrong type +language_model\.norm\.weight: expected bf16, f16, f32, got"
    ):
        load_checkpoint(folder)


def test_weights_are_views_of_the_file(small_folder: Path) -> None:
    checkpoint = load_checkpoint(small_folder)
    maps = set()
    for leaf in leaves(checkpoint.params):
        assert not leaf.flags.writeable
        assert any(np.shares_memory(leaf, tensor) for tensor in checkpoint.tensors.values())
        base: Any = leaf
        while isinstance(base, np.ndarray):
            base = base.base
        maps.add(base.obj if isinstance(base, memoryview) else base)
    assert [type(base) for base in maps] == [mmap.mmap]
    with pytest.raises(ValueError, match="read-only"):
        checkpoint.params.language_model.norm[0] = 0
    assert checkpoint.total_bytes == (small_folder / "model.safetensors").stat().st_size
    assert checkpoint.files == (small_folder / "model.safetensors",)


# What does not fit.


def test_all_problems_are_told_in_one_error(folder: Path, released: Tensors) -> None:
    tensors = dict(released)
    del tensors["language_model.model.norm.weight"]
    del tensors["vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias"]
    tensors["language_model.model.layers.4.mlp.up_proj.weight"] = np.zeros((160, 72), np.uint16)
    tensors["multi_modal_projector.linear.weight"] = np.zeros((48, 72), np.uint16)
    tensors["multi_modal_projector.linear.bias"] = np.zeros(72, np.int32)
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(write(folder, tensors))
    assert raised.value.exit_code == 5
    head, *lines = str(raised.value).splitlines()
    assert "5 problems" in head
    assert lines == [
        "  missing     vision_tower.encoder.layers.1.mlp.fc1.bias (112,)",
        "  missing     language_model.norm.weight (72,)",
        "  unexpected  language_model.layers.4.mlp.up_proj.weight (160, 72)",
        "  wrong shape multi_modal_projector.linear.weight: expected (72, 48), got (48, 72)",
        "  wrong type  multi_modal_projector.linear.bias: expected bf16, f16, f32, got int32",
    ]


def test_many_problems_are_counted(folder: Path, released: Tensors) -> None:
    tensors = {name: tensor for name, tensor in released.items() if "layers.2." not in name}
    with pytest.raises(CheckpointError, match="27 problems") as raised:
        load_checkpoint(write(folder, tensors))
    assert len(str(raised.value).splitlines()) == 1 + 12 + 1
    assert str(raised.value).endswith("and 15 more")


def test_a_transposed_matrix_is_refused(folder: Path, released: Tensors) -> None:
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    write(folder, {**released, name: np.ascontiguousarray(released[name].T)})
    with pytest.raises(
        CheckpointError, match=r"wrong shape .*down_proj\.weight: expected \(72, 160\), got \(160, 72\)"
    ):
        load_checkpoint(folder)


# Numbers that are none.


@pytest.mark.parametrize("chunk", [1, 4, 7, 1 << 22])
@pytest.mark.parametrize("place", [0, 3, 4, 34])
@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        (np.uint16, 0x7FC0),
        (np.uint16, 0x7F81),
        (np.uint16, 0x7F80),
        (np.uint16, 0xFF80),
        (np.float16, math.nan),
        (np.float16, -math.inf),
        (np.float32, math.nan),
        (np.float32, math.inf),
    ],
)
def test_numbers_that_are_not_finite_are_found(
    dtype: Any, bad: float, place: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "CHUNK", chunk)
    good = np.full((5, 7), 0x7F7F if dtype == np.uint16 else np.finfo(dtype).max, dtype)
    broken = good.copy()
    broken.reshape(-1)[place] = bad
    counted: list[int] = []
    tensors = {"good": good, "broken": broken, "empty": good[:0], "again": good}
    assert list(not_finite_tensors(tensors, counted.append)) == ["broken"]
    assert sum(counted) == 3 * good.nbytes
    assert max(counted) == min(chunk, 35) * good.itemsize


def test_a_good_checkpoint_is_finite(small_folder: Path) -> None:
    assert list(not_finite_tensors(load_checkpoint(small_folder).tensors)) == []


# The image processor.

PROCESSOR_FAULTS: dict[str, tuple[Any, str]] = {
    "size": ({"height": 224, "width": 224}, "expected {'height': 56, 'width': 56}"),
    "image_seq_length": (256, "expected 16"),
    "image_mean": ([0.48, 0.46, 0.41], "expected [0.5, 0.5, 0.5]"),
    "image_std": ([0.5, 0.5], "expected [0.5, 0.5, 0.5]"),
    "resample": (2, "expected 3"),
    "do_resize": (False, "expected True"),
    "do_rescale": (False, "expected True"),
    "do_normalize": (False, "expected True"),
    "do_center_crop": (True, "expected False"),
    "do_pad": (True, "expected False"),
    "rescale_factor": (1 / 256, "expected 1/255"),
}


@pytest.mark.parametrize("name", PROCESSOR_FAULTS)
@pytest.mark.parametrize("nested", [False, True])
def test_another_image_processor_is_refused(name: str, nested: bool, folder: Path, released: Tensors) -> None:
    write(folder, released)
    load_checkpoint(folder)
    value, expected = PROCESSOR_FAULTS[name]
    path = folder / "preprocessor_config.json"
    edit_json(path, **{name: value})
    if nested:
        content = json.loads(path.read_text())
        path.unlink()
        path = folder / "processor_config.json"
        path.write_text(json.dumps({"image_processor": content, "processor_class": "PaliGemmaProcessor"}))
    with pytest.raises(ConfigError) as raised:
        load_checkpoint(folder)
    message = str(raised.value)
    assert message.startswith(f"{path.name}: {name} is ")
    assert expected in message


@pytest.mark.parametrize("content", ["[]", '{"image_processor": [1]}', '{"image_processor": "fast"}', "{"])
def test_an_image_processor_that_is_none(content: str, folder: Path, released: Tensors) -> None:
    write(folder, released)
    (folder / "preprocessor_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"^preprocessor_config\.json: "):
        load_checkpoint(folder)


def test_no_image_processor_is_no_fault(folder: Path, released: Tensors) -> None:
    (folder / "preprocessor_config.json").unlink()
    assert load_checkpoint(write(folder, released)).config.vision.image_size == 56
    (folder / "preprocessor_config.json").write_text('{"size": null, "do_convert_rgb": null}')
    load_checkpoint(folder)
