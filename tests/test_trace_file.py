"""Trace files: what another reader finds in them, that one stage is held at a time, and that half a file is none."""

import json
import os
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import pg2ref
from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.checkpoint.safetensors_file import read_tensors
from pg2ref.checkpoint.safetensors_writer import Planned, new_tensor_file
from pg2ref.config import PaliGemmaConfig
from pg2ref.errors import InputError, Pg2RefError, UsageError
from pg2ref.parity import summary, trace_file
from pg2ref.parity.records import open_record
from pg2ref.parity.streamed_file import PAGE
from pg2ref.parity.summary import SAMPLES, Summary
from pg2ref.parity.trace_file import FORMAT, NUMBERS, FullWriter, Point, StatsWriter
from pg2ref.published import PUBLISHED
from pg2ref.recording.run_trace import RunTrace

SCENE = Path(__file__).parent / "data" / "scene.png"
IDS = np.array([7, 2, 5], np.int64)


def everything(stage: str) -> bool:
    return True


def some_stages(rng: np.random.Generator) -> dict[str, Array]:
    return {
        "vision/layer_03/out": rng.standard_normal((5, 7)).astype(np.float32),
        "prefix/embeddings": rng.standard_normal((11, 3)),
        "step_002/text/layer_00/out": f32_to_bf16(rng.standard_normal((1, 13)).astype(np.float32)),
    }


def write(path: Path, stages: dict[str, Array]) -> None:
    with FullWriter(path, everything, len(stages)) as writer:
        for stage, array in stages.items():
            assert writer(stage, array) is array
        writer.finish({"precision": "f32"}, IDS, {"prefix/embeddings": {"f32": 1.23456789e-7}})


def test_another_reader_finds_the_stages(tmp_path: Path, rng: np.random.Generator) -> None:
    stages = some_stages(rng)
    write(tmp_path / "t.safetensors", stages)
    with safe_open(tmp_path / "t.safetensors", "np") as file:
        metadata = file.metadata()
        assert sorted(file.keys()) == sorted([*stages, "input/ids"])
        np.testing.assert_array_equal(file.get_tensor("prefix/embeddings"), stages["prefix/embeddings"], strict=True)
        np.testing.assert_array_equal(file.get_tensor("input/ids"), IDS, strict=True)
    assert (metadata["format"], metadata["mode"], metadata["precision"]) == ("pg2ref-trace/1", "full", "f32")
    assert json.loads(metadata["points"]) == [
        {"name": "vision/layer_03/out", "shape": [5, 7], "type": "f32", "step": 0, "layer": 3},
        {"name": "prefix/embeddings", "shape": [11, 3], "type": "f64", "step": 0, "layer": None,
         "floor": {"f32": 1.235e-7}},
        {"name": "step_002/text/layer_00/out", "shape": [1, 13], "type": "bf16", "step": 2, "layer": 0},
    ]  # fmt: skip


def test_stages_lie_in_the_order_of_computation(tmp_path: Path, rng: np.random.Generator) -> None:
    stages = some_stages(rng)
    write(tmp_path / "t.safetensors", stages)
    record = open_record(tmp_path / "t.safetensors")
    assert list(record.stages) == ["input/ids", *stages]
    header_bytes = int.from_bytes((tmp_path / "t.safetensors").read_bytes()[:8], "little")
    assert (8 + header_bytes) % PAGE == 0, "stages could not be written past the page cache"
    for name, array in stages.items():
        np.testing.assert_array_equal(record.stages[name].read(), array, strict=True)
    assert record.stages["prefix/embeddings"].floors == {"f32": 1.235e-7}
    assert record.stages["step_002/text/layer_00/out"].type == "bf16"


def test_one_stage_is_held_at_a_time(tmp_path: Path, rng: np.random.Generator) -> None:
    """Each array is gone when the next one comes, and on the disk already."""
    with FullWriter(tmp_path / "t.safetensors", everything, 8) as writer:
        held: list[weakref.ref[Array]] = []
        for number in range(8):
            array = rng.standard_normal((100, number + 1))
            held.append(weakref.ref(array))
            writer(f"stage_{number}", array)
            np.testing.assert_array_equal(writer.read(f"stage_{number}"), array, strict=True)
            del array
            assert all(reference() is None for reference in held)


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    writer = FullWriter(tmp_path / "t.safetensors", everything, 2)

    def run() -> None:
        with writer:
            writer("logits", np.ones((1, 4)))
            assert len(list(tmp_path.iterdir())) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert list(tmp_path.iterdir()) == []


def test_the_file_that_was_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"old")
    with FullWriter(path, everything, 1) as writer:
        writer("logits", np.ones((1, 4)))
        assert path.read_bytes() == b"old"
        writer.finish({}, IDS)
    assert list(open_record(path).stages) == ["input/ids", "logits"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", ["full", "stats"])
def test_two_processes_may_write_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Each has an unfinished file of its own: whole files replace each other."""
    path = tmp_path / "t.safetensors"

    def write_inside(depth: int) -> None:
        """A run that begins and ends while another one writes."""
        monkeypatch.setattr(os, "getpid", lambda: 1000 + depth)
        if mode == "full":
            with FullWriter(path, everything, 1) as writer:
                writer("logits", np.full((depth, 3), float(depth)))
                if depth == 1:
                    write_inside(2)
                writer.finish({}, IDS)
        else:
            with new_tensor_file(path, {"logits": Planned(np.dtype(np.float64), (depth, 3))}) as put:
                if depth == 1:
                    write_inside(2)
                put("logits", np.full((depth, 3), float(depth)))
        with safe_open(path, "np") as file:
            np.testing.assert_array_equal(file.get_tensor("logits"), np.full((depth, 3), depth))

    write_inside(1)
    assert list(tmp_path.iterdir()) == [path]


def test_more_stages_than_were_announced_are_refused(tmp_path: Path) -> None:
    with FullWriter(tmp_path / "t.safetensors", everything, 1) as writer:
        for number in range(1000):
            writer(f"stage_{number}", np.ones(1))
        with pytest.raises(Pg2RefError, match=r"1000 stages need .* of header, expected at most"):
            writer.finish({}, IDS)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_comes_once(tmp_path: Path) -> None:
    with FullWriter(tmp_path / "t.safetensors", everything, 2) as writer:
        writer("logits", np.ones(1))
        with pytest.raises(Pg2RefError, match="logits was recorded twice"):
            writer("logits", np.ones(1))


def test_only_points_are_written(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with FullWriter(path, lambda stage: stage == "logits", 2) as writer:
        assert not writer.wants("text/final_norm")
        writer("text/final_norm", np.ones(1))
        writer("logits", np.ones(1))
        writer.finish({}, IDS)
    assert list(open_record(path).stages) == ["input/ids", "logits"]


# Mode stats.


def test_sampled_positions_follow_the_recipe() -> None:
    """The recipe as the docstring tells it, in other words."""
    size, state, expected = 1000003, 0, []
    for _ in range(256):
        state = (1664525 * state + 1013904223) & 0xFFFFFFFF
        expected.append((state * size) // 4294967296)
    assert summary.sampled_positions(size).tolist() == expected
    assert min(expected) < 10000
    assert max(expected) > 990000
    assert len(set(expected)) > 250
    assert summary.sampled_positions(256).tolist() == list(range(256))


def test_rows_and_columns_are_sampled_alike() -> None:
    """A stride that is a multiple of the width would look at one column only."""
    positions = summary.sampled_positions(256 * 2304)
    assert len(set(positions % 2304)) > 230
    assert len(set(positions // 2304)) > 140


def test_statistics_are_those_of_the_numbers(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr(summary, "BLOCK", 100)
    array = rng.standard_normal((13, 29)).astype(np.float32) + 3
    found = summary.summarize(array)
    exact = array.astype(np.float64)
    assert (found.minimum, found.maximum) == (exact.min(), exact.max())
    assert found[2:5] == pytest.approx((exact.mean(), exact.std(), np.linalg.norm(exact)), rel=1e-12)
    assert found[5:7] == (0, 0)
    np.testing.assert_array_equal(found.samples, array.reshape(-1)[summary.sampled_positions(array.size)])


def test_numbers_that_are_none_are_counted_and_left_out() -> None:
    found = summary.summarize(np.array([1.0, np.nan, -2.0, np.inf, -np.inf]))
    assert (found.minimum, found.maximum, found.nans, found.infinities) == (-2.0, 1.0, 1, 2)
    assert found.mean == -0.5
    nothing = summary.summarize(np.array([np.nan]))
    assert (nothing.minimum, nothing.maximum, nothing.norm) == (0.0, 0.0, 0.0)


def write_stats_of(config: PaliGemmaConfig, small_run: RunTrace, path: Path, steps: int) -> None:
    """A record of summaries as a run of the config leaves it, floors included, with the numbers left out."""
    writer = StatsWriter(path, everything)
    vision, text = config.vision, config.text
    side = max(vision.num_image_tokens + 99, text.intermediate_size)
    for stage in small_run.stages:
        layers = {"vision": vision.num_hidden_layers, "text": text.num_hidden_layers}.get(stage.split("/")[0], 0)
        named = [stage.replace("layer_00", f"layer_{i:02d}") for i in range(layers)] if "layer_00" in stage else []
        if "layer" not in stage:
            named = [stage]
        if stage.startswith(("text", "logits")):
            named += [f"step_{step:03d}/{name}" for step in range(1, steps + 1) for name in named]
        writer.recorded += [Point(name, (text.num_attention_heads, side, side), "f64") for name in named]
    numbers = Summary(-1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 0, 0, np.arange(SAMPLES, dtype=np.float32))
    writer.summaries = [numbers] * len(writer.recorded)
    ids = [config.image_token_id] * vision.num_image_tokens + [108] * 99
    facts = replace(small_run.run, config=config, prompt_ids=ids).to_metadata()
    floors = {point.name: {"f32": 1.234e-7, "bf16": 5.678e-3} for point in writer.recorded}
    writer.finish(facts, np.array(ids, np.int64), floors)


@pytest.fixture(scope="module")
def small_run(small_folder: Path) -> RunTrace:
    return pg2ref.load(small_folder, precision="f32", backend="numpy").trace(SCENE, "caption en")


# (size, tokens after the prompt): samples of each stage
SAMPLES_THAT_FIT = {
    ("3b-224", 0): 256, ("3b-448", 0): 256, ("3b-896", 0): 256, ("3b-224", 2): 129, ("3b-224", 4): 67,
    ("10b-224", 0): 229, ("10b-448", 0): 225, ("10b-896", 0): 211, ("10b-224", 2): 70,
    ("28b-224", 0): 213, ("28b-448", 0): 210, ("28b-896", 0): 196, ("28b-224", 1): 107,
}  # fmt: skip


@pytest.mark.parametrize(("size", "steps"), SAMPLES_THAT_FIT)
def test_a_record_of_all_stages_takes_less_than_a_megabyte(
    size: str, steps: int, small_run: RunTrace, tmp_path: Path
) -> None:
    """As many samples as there is room for; names of images and the like are of this length or that."""
    path = tmp_path / "s.safetensors"
    write_stats_of(PUBLISHED[size], small_run, path, steps)
    record = open_record(path)
    layers = {int(name.split("layer_")[1][:2]) for name in record.stages if name.startswith("text/layer")}
    assert len(layers) == PUBLISHED[size].text.num_hidden_layers
    assert path.stat().st_size <= 1_000_000
    (kept,) = {len(stage.summary.samples) for stage in record.stages.values() if stage.summary}
    assert kept == pytest.approx(SAMPLES_THAT_FIT[size, steps], abs=2)
    assert kept == 256 or path.stat().st_size > 980_000, "no room was left"


def test_however_many_stages_some_samples_are_kept(small_run: RunTrace, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_stats_of(PUBLISHED["28b-224"], small_run, path, steps=9)
    record = open_record(path)
    assert {len(stage.summary.samples) for stage in record.stages.values() if stage.summary} == {64}


def test_fewer_samples_are_the_first_of_them_and_of_a_small_stage_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_file, "LARGEST_STATS", 0)
    sizes = {"large": 1000, "middle": 200, "small": 60}
    writer = StatsWriter(tmp_path / "s.safetensors", everything)
    for name, size in sizes.items():
        writer(name, np.arange(size, dtype=np.float32))
    writer.finish({}, IDS)
    record = open_record(tmp_path / "s.safetensors")
    for name, size in sizes.items():
        samples = record.stages[name].read()
        np.testing.assert_array_equal(samples, summary.sampled_positions(size, 64))
        assert len(samples) == min(size, 64)
    assert record.stages["large"].read().tolist() == summary.sampled_positions(1000).tolist()[:64]


def test_a_summary_comes_back(tmp_path: Path, rng: np.random.Generator) -> None:
    stages, path = some_stages(rng), tmp_path / "s.safetensors"
    writer = StatsWriter(path, everything)
    for name, array in stages.items():
        writer(name, array)
    writer.finish({}, IDS)
    record = open_record(path)
    assert list(record.stages) == ["input/ids", *stages]
    for name, array in stages.items():
        stage, expected = record.stages[name], summary.summarize(array)
        assert stage.shape == array.shape
        assert stage.summary is not None
        assert stage.summary[:-1] == expected[:-1]
        np.testing.assert_array_equal(stage.summary.samples, expected.samples)


# A run.


NUMBER_OF = {"minimum": 0, "maximum": 1, "mean": 2, "std": 3, "norm": 4, "nans": 5, "infinities": 6}


@pytest.mark.parametrize(
    ("which", "value"),
    [
        *((which, np.nan) for which in NUMBER_OF),
        *((which, np.inf) for which in NUMBER_OF),
        ("norm", -1.0),
        ("std", -1.0),
        ("minimum", 1e9),
        ("nans", -3.0),
        ("nans", 0.5),
        ("infinities", 1e9),
    ],
)
def test_statistics_of_no_array_are_refused(tmp_path: Path, which: str, value: float) -> None:
    """NaN is neither larger nor smaller than an error: it would pass for equal."""
    path = tmp_path / "stats"
    writer = StatsWriter(path, lambda _: True)
    writer("logits", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.finish({}, np.arange(3))
    file = read_tensors(path)
    assert open_record(path).stages["logits"].summary is not None
    tensors = {name: np.array(tensor) for name, tensor in file.tensors.items()}
    tensors[NUMBERS][0, NUMBER_OF[which]] = value
    save_file(tensors, path, dict(file.metadata))
    with pytest.raises(InputError, match="lacks or garbles the statistics of logits: record it again"):
        open_record(path)


@pytest.mark.parametrize("floor", ["Infinity", "NaN", "-1", "[1]", '"x"', "null", "true"])
def test_a_floor_that_is_none_is_refused(tmp_path: Path, floor: str) -> None:
    """One without end would pass anything."""
    points = f'[{{"name": "logits", "shape": [3], "type": "f32", "floor": {{"f32": {floor}}}}}]'
    tensors = {"logits": np.ones(3, np.float32), trace_file.IDS: np.arange(2)}
    save_file(tensors, tmp_path / "x", {"format": FORMAT, "mode": "full", "points": points})
    with pytest.raises(InputError, match=r"lacks or garbles a noise floor, .*: record it again"):
        open_record(tmp_path / "x")


def test_a_floor_without_end_is_not_written(tmp_path: Path) -> None:
    with FullWriter(tmp_path / "x", lambda _: True, 1) as writer:
        writer("logits", np.zeros(3, np.float32))
        writer.finish({}, np.arange(2), {"logits": {"f32": np.inf, "bf16": 0.5}})
    assert open_record(tmp_path / "x").stages["logits"].floors == {"bf16": 0.5}


def test_a_trace_of_the_api_is_saved_with_its_facts(small_folder: Path, tmp_path: Path) -> None:
    model = pg2ref.load(small_folder, precision="f32", backend="numpy")
    trace = model.trace(SCENE, "caption en", steps=2)
    assert {stage.split("/")[0] for stage in trace.stages} > {"vision", "text", "step_001", "step_002"}
    trace.save(tmp_path / "full.safetensors")
    trace.save(str(tmp_path / "stats.safetensors"), mode="stats")
    full, stats = (open_record(tmp_path / f"{mode}.safetensors") for mode in ("full", "stats"))
    assert list(full.stages) == list(stats.stages) == ["input/ids", *trace.stages]
    for name, array in trace.stages.items():
        np.testing.assert_array_equal(full.stages[name].read(), array, strict=True)
    facts = full.facts
    assert (facts["precision"], facts["backend"]) == ("f32", "numpy")
    assert json.loads(facts["config"])["text"]["num_hidden_layers"] == 4
    assert json.loads(facts["policy"])["window"] == "transformers"
    assert json.loads(facts["answer_ids"]) == list(model.generate(SCENE, "caption en", max_new_tokens=3).token_ids)
    given = json.loads(facts["input"])
    assert given["prompt"] == "caption en"
    assert given["ids"] == full.stages["input/ids"].read().tolist()
    assert given["images"][0]["name"] == "scene.png"
    assert json.loads(facts["model"]) == {
        "id": small_folder.name,
        "revision": None,
        "weights": "bf16",
        "adapters": [],
    }
    assert {"pg2ref", "numpy"} <= json.loads(facts["versions"]).keys()
    assert str(small_folder) not in json.dumps(dict(facts)), "no paths of this machine"
    with pytest.raises(UsageError, match="mode 'some' is not one of full, stats"):
        trace.save(tmp_path / "x", mode="some")
    with pytest.raises(Pg2RefError, match="cannot be written"):
        trace.save(tmp_path / "nowhere" / "x")


@pytest.mark.parametrize("mode", ["full", "stats"])
def test_a_trace_of_the_api_goes_through_a_link_and_to_no_device(
    small_run: RunTrace, tmp_path: Path, mode: str
) -> None:
    """As `pg2ref trace -o` does."""
    (tmp_path / "link").symlink_to(tmp_path / "run")
    small_run.save(tmp_path / "link", mode=mode)
    assert (tmp_path / "link").is_symlink()
    assert "input/ids" in open_record(tmp_path / "run").stages
    os.mkfifo(tmp_path / "pipe")
    for no_file in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UsageError, match="expected the name of a file"):
            small_run.save(no_file, mode=mode)
    assert (tmp_path / "pipe").is_fifo()


# Files that are no traces.


def damaged(tmp_path: Path, **changes: str | None) -> Path:
    path = tmp_path / "t.safetensors"
    metadata: dict[str, str | None] = {"format": trace_file.FORMAT, "mode": "full", "points": "[]", **changes}
    from safetensors.numpy import save_file

    save_file({"input/ids": IDS}, path, {name: value for name, value in metadata.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "pg2ref-trace/9"}, "pg2ref-trace/9, this version reads pg2ref-trace/1"),
        ({"points": None}, "lacks or garbles 'points'"),
        ({"points": "["}, "lacks or garbles"),
        ({"points": "[3]"}, "lacks or garbles"),
        ({"points": '[{"name": "logits"}]'}, "lacks or garbles 'logits'"),
        ({"mode": "stats", "points": '[{"name": "logits", "shape": [1], "type": "f32"}]'}, "garbles 'stats/samples'"),
    ],
)
def test_damaged_traces_are_refused(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_record(damaged(tmp_path, **changes))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found nothing"):
        open_record(tmp_path / "absent")
    (tmp_path / "text").write_text("no tensors in here")
    with pytest.raises(InputError, match="not a safetensors file"):
        open_record(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected npy or safetensors files in the folder, found none"):
        open_record(tmp_path / "empty")
