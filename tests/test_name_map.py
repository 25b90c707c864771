"""Maps of names: dumps made as each library lays them out become the stages they were made from."""

import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import museum
import numpy as np
import pytest
from safetensors.numpy import save_file

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.errors import InputError, UsageError
from pg2ref.parity.compare import compare
from pg2ref.parity.name_map import SHIPPED, NameMap, load_map
from pg2ref.parity.records import open_record, rename
from pg2ref.parity.trace_file import IDS

Dump = dict[str, Array]
Stages = dict[str, Array]


@pytest.fixture(scope="module")
def stages() -> Stages:
    """Every stage of a run on two images."""
    run = museum.make_run(np.float32, "two_images")._replace(answer_ids=())
    return museum.stages_of(run._replace(pixel_values=run.pixel_values * 2))


def of_images(stages: Stages, stage: str) -> Array:
    """Both images' arrays, one axis in front."""
    return np.stack([stages[stage], stages[f"image_1/{stage}"]])


VISION_MODULES = {
    "layer_norm1": "layer_norm1",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out_proj": "self_attn.out_proj",
    "layer_norm2": "layer_norm2",
    "fc2": "mlp.fc2",
}
VISION_INPUTS = {"attention_out": "self_attn.out_proj", "attention_residual": "layer_norm2", "gelu": "mlp.fc2"}
TEXT_MODULES = {
    "input_layernorm": "input_layernorm",
    "value": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "post_attention_layernorm": "post_attention_layernorm",
    "pre_feedforward_layernorm": "pre_feedforward_layernorm",
    "down_proj": "mlp.down_proj",
    "post_feedforward_layernorm": "post_feedforward_layernorm",
}
TEXT_INPUTS = {"attention_out": "self_attn.o_proj", "gated_gelu": "mlp.down_proj"}


def heads_joined(array: Array) -> Array:
    """A projection as a linear layer puts it out: heads side by side in the last axis."""
    return array.reshape(*array.shape[:-2], -1) if array.ndim == 4 else array


def layers(stages: Stages, tower: str) -> range:
    return range(1 + max(int(found[1]) for name in stages if (found := re.match(rf"{tower}/layer_(\d+)/", name))))


def modules(stages: Stages, vision: str, text: str) -> Iterator[tuple[str, str, Array]]:
    """Stage, module, and what the module puts out, with a batch axis."""
    for i in layers(stages, "vision"):
        for stage, module in VISION_MODULES.items():
            name = f"vision/layer_{i:02d}/{stage}"
            yield name, f"{vision}encoder.layers.{i}.{module}", heads_joined(of_images(stages, name))
    for i in layers(stages, "text"):
        for stage, module in TEXT_MODULES.items():
            name = f"text/layer_{i:02d}/{stage}"
            yield name, f"{text}layers.{i}.{module}", stages[name].reshape(1, len(stages[name]), -1)
    yield "vision/post_layernorm", f"{vision}post_layernorm", of_images(stages, "vision/post_layernorm")
    yield "projector/out", "multi_modal_projector.linear", of_images(stages, "projector/out")
    yield "text/final_norm", f"{text}norm", stages["text/final_norm"][None]


def transformers_debugger_dump(stages: Stages) -> Dump:
    """As model_addition_debugger_context names its files: inputs and outputs of modules."""
    top = "PaliGemmaForConditionalGeneration"
    dump = {
        f"{top}_inputs_kwargs_input_ids": stages[IDS][None],
        f"{top}_inputs_kwargs_pixel_values": of_images(stages, "pixel_values"),
        f"{top}.lm_head_outputs": stages["logits_before_cap"][None],
        f"{top}_outputs_logits": stages["logits"][None],
        f"{top}.model.vision_tower.encoder.layers.0_inputs_args_0": of_images(stages, "vision/patch_embeddings"),
        f"{top}.model.language_model.layers.0_inputs_args_0": stages["prefix/embeddings"][None],
        f"{top}.model.language_model.rotary_emb_outputs_0": np.ones((1, 5, 7), np.float32),
    }
    for _, module, array in modules(stages, f"{top}.model.vision_tower.", f"{top}.model.language_model."):
        name = module if module.startswith(top) else f"{top}.model.{module}"
        dump[f"{name}_outputs"] = array
    for tower, inputs in (("vision", VISION_INPUTS), ("text", TEXT_INPUTS)):
        path = f"{top}.model.{'vision_tower.encoder' if tower == 'vision' else 'language_model'}.layers."
        for i in layers(stages, tower):
            shown = (lambda name: of_images(stages, name)) if tower == "vision" else (lambda name: stages[name][None])
            for stage, module in inputs.items():
                dump[f"{path}{i}.{module}_inputs_args_0"] = shown(f"{tower}/layer_{i:02d}/{stage}")
            if i:
                dump[f"{path}{i}_inputs_args_0"] = shown(f"{tower}/layer_{i - 1:02d}/out")
    return dump


def transformers_hooks_dump(stages: Stages) -> Dump:
    """What hooks see, under the names of modules as releases before 5 had them."""
    dump = {
        module: array for _, module, array in modules(stages, "vision_tower.vision_model.", "language_model.model.")
    }
    for i in layers(stages, "text"):
        dump[f"language_model.model.layers.{i}"] = stages[f"text/layer_{i:02d}/out"][None]
    return dump | {"logits": stages["logits"][None]}


def mlx_dump(stages: Stages) -> Dump:
    """Modules by name; pixels with channels last."""
    dump = {
        module: array for _, module, array in modules(stages, "vision_tower.vision_model.", "language_model.model.")
    }
    for i in layers(stages, "vision"):
        dump[f"vision_tower.vision_model.encoder.layers.{i}"] = of_images(stages, f"vision/layer_{i:02d}/out")
    for i in layers(stages, "text"):
        dump[f"language_model.model.layers.{i}"] = stages[f"text/layer_{i:02d}/out"][None]
    return dump | {
        "input_ids": stages[IDS][None],
        "pixel_values": of_images(stages, "pixel_values").transpose(0, 2, 3, 1),
        "vision_tower.vision_model.embeddings": of_images(stages, "vision/patch_embeddings"),
        "language_model": stages["logits"][None],
    }


BIG_VISION_TEXT = {
    "input_layernorm": "pre_attention_norm/",
    "o_proj": "attn/",
    "post_attention_layernorm": "post_attention_norm/",
    "pre_feedforward_layernorm": "pre_ffw_norm/",
    "down_proj": "mlp/",
    "post_feedforward_layernorm": "post_ffw_norm/",
    "out": "",
}


def big_vision_dump(stages: Stages, *, is_scanned: bool = False) -> Dump:
    """The dictionary `out` of the model, the image, and what flax keeps of the decoder's modules."""
    dump = {
        "image": of_images(stages, "pixel_values").transpose(0, 2, 3, 1),
        "img/with_posemb": of_images(stages, "vision/patch_embeddings"),
        "img/encoded": of_images(stages, "vision/post_layernorm"),
        "img/zimg": of_images(stages, "projector/out"),
        "llm/pre_logits": stages["text/final_norm"][None],
        "text_logits": stages["logits_before_cap"][None],
        "attn_mask": np.ones((1, 4, 4), bool),
        "text_tokens": np.ones((1, 4), np.int32),
    }
    for ours, module in BIG_VISION_TEXT.items():
        of_layers = [stages[f"text/layer_{i:02d}/{ours}"] for i in layers(stages, "text")]
        if is_scanned:
            dump[f"llm/layers/{module}__call__/0"] = np.stack(of_layers)[:, None]
        else:
            dump |= {f"intermediates/llm/layers/{i}/{module}__call__": one[None] for i, one in enumerate(of_layers)}
    for i in layers(stages, "vision"):
        for ours, theirs in {"out_proj": "sa", "attention_residual": "+sa", "fc2": "mlp", "out": "+mlp"}.items():
            dump[f"img/encoder/block{i:02d}/{theirs}"] = of_images(stages, f"vision/layer_{i:02d}/{ours}")
    return dump


def scanned_big_vision_dump(stages: Stages) -> Dump:
    """The same where a scan runs over the decoder's layers: all of them in one array."""
    return big_vision_dump(stages, is_scanned=True)


# Of each dump, how many stages it has: the rest is hidden inside modules, or comes before a rotation.
DUMPS: list[tuple[str, Callable[[Stages], Dump], int]] = [
    ("transformers", transformers_debugger_dump, 94),
    ("transformers", transformers_hooks_dump, 66),
    ("mlx", mlx_dump, 75),
    ("big_vision", big_vision_dump, 54),
    ("big_vision", scanned_big_vision_dump, 54),
]


@pytest.mark.parametrize(("map_name", "make", "count"), DUMPS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_dump_becomes_the_stages_it_was_made_of(
    map_name: str, make: Callable[[Stages], Dump], count: int, stages: Stages
) -> None:
    record = rename("a dump", make(stages), {}, load_map(map_name))
    for name, stage in record.stages.items():
        np.testing.assert_array_equal(stage.read().reshape(stages[name].shape), stages[name], err_msg=name)
    assert len(record.stages) == count
    assert "image_1/vision/layer_01/out_proj" in record.stages


@pytest.mark.parametrize("name", SHIPPED)
def test_no_entry_of_a_shipped_map_is_idle(name: str, stages: Stages) -> None:
    """Each entry is the one that takes some array of a made dump."""
    shipped = load_map(name)
    arrays = {key for map_name, make, _ in DUMPS if map_name == name for key in make(stages)}
    taken = {next((i for i, e in enumerate(shipped.entries) if e.match.fullmatch(key)), None) for key in arrays}
    assert set(range(len(shipped.entries))) <= taken


# Files that dumps come in.


def identity(folder: Path) -> NameMap:
    path = folder / "map.toml"
    path.write_text("[[array]]\nmatch = 'a\\.(?P<n>\\d+)'\nstage = 'text/layer_{n:02d}/out'\naxes = 2\n")
    return load_map(str(path))


def test_all_kinds_of_files_hold_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {f"a.{n}": rng.standard_normal((1, 5, 7)).astype(np.float32) for n in (3, 12)} | {"x": np.ones(2)}
    np.savez(tmp_path / "dump.npz", **arrays)
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    save_file(arrays, tmp_path / "dump.safetensors")
    for name in ("npy", "debugger"):
        (tmp_path / name).mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "npy" / f"{name}.npy", array)
        save_file({"data": array}, tmp_path / "debugger" / f"{name}.safetensors")
    name_map = identity(tmp_path)
    for path in ("dump.npz", "small.npz", "dump.safetensors", "npy", "debugger"):
        record = open_record(tmp_path / path, name_map)
        assert sorted(record.stages) == ["text/layer_03/out", "text/layer_12/out"]
        np.testing.assert_array_equal(record.stages["text/layer_12/out"].read(), arrays["a.12"][0])
        unmapped = open_record(tmp_path / path)
        assert sorted(unmapped.stages) == ["a.12", "a.3", "x"]


def test_an_npz_is_read_array_by_array(tmp_path: Path) -> None:
    """Opened, it costs no memory: its arrays lie in the file, until they are read, and so in a comparison too."""
    arrays = {f"text/layer_{i:02d}/out": np.full((1 << 10, 1 << 10), i, np.float32) for i in range(6)}
    np.savez(tmp_path / "dump.npz", **arrays)
    opened = open_record(tmp_path / "dump.npz")  # imports what is imported once
    tracemalloc.start()
    opened = open_record(tmp_path / "dump.npz")
    assert compare(opened, opened).is_close
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < (4 << 20), "less than one array"
    with pytest.raises(ValueError, match="read-only"):
        opened.stages["text/layer_03/out"].read()[0, 0] = 1


def test_bf16_without_a_type_is_read(tmp_path: Path, rng: np.random.Generator) -> None:
    """JAX's bfloat16 comes out of NumPy's files as two bytes of nothing."""
    bits = f32_to_bf16(rng.standard_normal((5, 7)).astype(np.float32))
    np.savez(tmp_path / "dump.npz", logits=bits.view("V2"))
    stage = open_record(tmp_path / "dump.npz").stages["logits"]
    assert stage.type == "bf16"
    np.testing.assert_array_equal(stage.read(), bits)


def test_what_is_no_number_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "dump.npz", logits=np.array(["text"]), mask=np.ones(3, bool))
    record = open_record(tmp_path / "dump.npz")
    for name in ("logits", "mask"):
        with pytest.raises(InputError, match=rf"'{name}': expected floats, got .*: convert it to float32"):
            record.stages[name].read()
    np.savez(tmp_path / "objects.npz", logits=np.ones(2), facts=np.array([{}]))
    with pytest.raises(InputError, match=r"'facts': expected numbers, got '\|O': leave it out"):
        open_record(tmp_path / "objects.npz")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "dump.npz").read_bytes().replace(b"NUMPY", b"numpy"))
    with pytest.raises(InputError, match=r"expected a whole \.npz file, got BadZipFile: .*best written by np\.savez"):
        open_record(tmp_path / "broken.npz")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"a\.npy: expected an npy file of numbers"):
        open_record(tmp_path / "folder")


# A map of one's own.


def own_map(tmp_path: Path, text: str) -> NameMap:
    (tmp_path / "own.toml").write_text(text, encoding="utf-8")
    return load_map(str(tmp_path / "own.toml"))


def test_layers_in_one_array_come_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    """As a scan over layers stacks them: a batch of one in each, and the model's axes in another order."""
    stacked = rng.standard_normal((3, 1, 7, 5))
    name_map = own_map(
        tmp_path,
        "[[array]]\nmatch = 'layers/out'\nstage = 'text/layer_{i:02d}/out'\naxes = 2\n"
        "transpose = [1, 0]\nstacked = 'i'\n",
    )
    record = rename("dump", {"layers/out": stacked, "other": stacked}, {}, name_map)
    assert list(record.stages) == [f"text/layer_{i:02d}/out" for i in range(3)]
    np.testing.assert_array_equal(record.stages["text/layer_02/out"].read(), stacked[2, 0].T)


def test_the_first_entry_that_fits_counts(tmp_path: Path) -> None:
    name_map = own_map(
        tmp_path, "[[array]]\nmatch = 'logits_draft'\n[[array]]\nmatch = 'logits.*'\nstage = 'logits'\naxes = 2\n"
    )
    record = rename("dump", {"logits_draft": np.ones((1, 2)), "logits_final": np.zeros((1, 2))}, {}, name_map)
    np.testing.assert_array_equal(record.stages["logits"].read(), np.zeros((1, 2)))


def test_two_arrays_cannot_be_one_stage(tmp_path: Path) -> None:
    name_map = own_map(tmp_path, "[[array]]\nmatch = 'logits.*'\nstage = 'logits'\naxes = 2\n")
    with pytest.raises(InputError, match="'logits_b' is a second logits: leave one of them out"):
        rename("dump", {"logits_a": np.ones((1, 2)), "logits_b": np.ones((1, 2))}, {}, name_map)


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (np.ones((2, 5, 7)), "axes = 2"),
        (np.ones(7), "axes = 2"),
        (np.ones((3, 1, 5, 7)), "axes = 2\nimages = true"),
        (np.ones((5, 7)), "axes = 2\ntranspose = [0]"),
        (np.ones((3, 2, 5, 7)), "axes = 2\nstacked = 'layer'"),
        (np.float32(1), "axes = 2\nstacked = 'layer'"),
    ],
)
def test_an_array_that_does_not_fit_is_named(tmp_path: Path, array: Array, options: str) -> None:
    name_map = own_map(tmp_path, f"[[array]]\nmatch = 'out'\nstage = 'logits'\n{options}\n")
    with pytest.raises(UsageError, match=r"out has shape \(.*\), expected one that axes = 2.* fit, and a batch of one"):
        rename("dump", {"out": array}, {}, name_map)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected [[array]] tables"),
        ("array = 3", "expected [[array]] tables"),
        ("[[array]", "no valid TOML"),
        ("[[array]]\nstage = 'x'", "number 1: expected at least `match`"),
        ("[[array]]\nmatch = '('", "match is no regular expression"),
        ("[[array]]\nmatch = 'a'\nstage = 'text/layer_{layer:02d}/out'", "which match has no group for"),
        ("[[array]]\nmatch = 'a'\nstage = 'text/{0}'", "which match has no group for"),
        ("[[array]]\nmatch = 'a'\nstage = '{'", "write {layer} or {layer:02d}"),
        ("[[array]]\nmatch = '(?P<n>.)'\nstage = '{n:99999999d}'", "expected {n} or {n:02d}"),
        ("[[array]]\nmatch = '(?P<n>.)'\nstage = '{n!r}'", "expected {n} or {n:02d}"),
        ("[[array]]\nmatch = '(?P<n>.)'\nstage = '{n.real}'", "which match has no group for"),
        ("[[array]]\nmatch = 'a'\naxes = -1", "axes = -1, transpose = None: expected a number, and each axis once"),
        ("[[array]]\nmatch = 'a'\ntranspose = [0, 2]", "transpose = [0, 2]: expected a number, and each axis once"),
        ("[[array]]\nmatch = 'a'\ntranspose = [0, 0]", "transpose = [0, 0]: expected a number, and each axis once"),
        ("abuot = 'x'\n[[array]]\nmatch = 'a'", "'abuot': expected `about` and [[array]] tables"),
        ("[[array]]\nmatch = 'a'\ngoes_into = 'layer'", "goes_into = 'layer' is no group of match"),
        ("[[array]]\nmatch = 'a'\naxes = '2'", "axes = '2', expected match (str)"),
        ("[[array]]\nmatch = 'a'\naxes = true", "axes = True, expected match (str)"),
        ("[[array]]\nmatch = 'a'\ntranspose = [0.5]", "transpose = [0.5], expected"),
        ("[[array]]\nmatch = 'a'\nsqueeze = [0]", "squeeze = [0], expected match (str)"),
    ],
)
def test_wrong_maps_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        own_map(tmp_path, text)


def test_a_group_that_is_no_number_is_refused(tmp_path: Path) -> None:
    name_map = own_map(tmp_path, "[[array]]\nmatch = 'a(?P<n>.)'\nstage = 'text/layer_{n:02d}/out'\naxes = 2\n")
    with pytest.raises(UsageError, match="n = 'x' of ax is no whole number"):
        rename("dump", {"ax": np.ones((1, 2))}, {}, name_map)


def test_nothing_goes_into_the_first_layer_from_before(tmp_path: Path) -> None:
    rule = "match = 'a(?P<n>.)'\nstage = 'text/layer_{n:02d}/out'\naxes = 2\ngoes_into = 'n'"
    name_map = own_map(tmp_path, f"[[array]]\n{rule}\n")
    assert list(rename("dump", {"a1": np.ones((1, 2))}, {}, name_map).stages) == ["text/layer_00/out"]
    with pytest.raises(UsageError, match="a0 goes into the first n: correct the match"):
        rename("dump", {"a0": np.ones((1, 2))}, {}, name_map)


def test_an_unknown_map_is_refused() -> None:
    with pytest.raises(UsageError, match="map 'jax' is none of transformers, big_vision, mlx, and no file"):
        load_map("jax")
