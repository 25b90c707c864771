"""Comparisons: each number against its formula, each verdict, what is named first, and where an error is made."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

import museum
import numpy as np
import pytest

from pg2ref.arrays import Array, f32_to_bf16
from pg2ref.errors import InputError, UsageError
from pg2ref.model.backend import REFERENCE
from pg2ref.parity import assert_trace_close, difference
from pg2ref.parity.bugs.run import Run, with_operations
from pg2ref.parity.compare import TOLERANCES, Comparison, compare
from pg2ref.parity.difference import measure, share_beyond
from pg2ref.parity.isolate import isolate
from pg2ref.parity.records import Record, Stage, plain_stage
from pg2ref.parity.replay import run_behind
from pg2ref.parity.summary import sampled_positions, shorten, summarize
from pg2ref.parity.trace_file import IDS, FullWriter
from pg2ref.recording.noise_floor import noise_floors, run_rounded
from pg2ref.trace import Trace

FLOOR = {"f32": 1e-6, "bf16": 1e-2}


def record(stages: Mapping[str, Array], facts: Mapping[str, str] = {}, **floors: float) -> Record:
    return Record("a record", facts, {name: plain_stage(array, floors) for name, array in stages.items()})


def summarised(stages: Mapping[str, Array]) -> Record:
    def stage(array: Array) -> Stage:
        kept = summarize(array)
        return Stage(array.shape, "f64", lambda: kept.samples, kept, FLOOR)

    return Record("summaries", {}, {name: stage(array) for name, array in stages.items()})


def noisy(array: Array, size: float, rng: np.random.Generator) -> Array:
    """Another with an error of that NRMSE."""
    noise = rng.standard_normal(array.shape)
    return array + noise * (size * np.linalg.norm(array) / np.linalg.norm(noise))


# Numbers.


def test_each_number_is_its_formula(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr(difference, "BLOCK", 64)
    exact = rng.standard_normal((13, 17))
    found = (1.25 * exact + 0.125 + rng.standard_normal(exact.shape) * 0.01).astype(np.float32)
    error = found.astype(np.float64) - exact
    measured = measure(exact, found)
    assert measured.max_abs == np.abs(error).max()
    assert measured.worst == np.abs(error).argmax()
    assert measured.nrmse == pytest.approx(np.linalg.norm(error) / np.linalg.norm(exact), rel=1e-12)
    cosine = (exact * found).sum() / np.linalg.norm(exact) / np.linalg.norm(found.astype(np.float64))
    assert measured.cosine == pytest.approx(cosine, rel=1e-12)
    assert measured.scale == pytest.approx((exact * found).sum() / (exact * exact).sum(), rel=1e-12)
    assert measured.bias == pytest.approx(error.mean(), rel=1e-12)
    assert measured.rms == pytest.approx(np.sqrt(np.mean(exact**2)), rel=1e-12)
    largest = np.float32(np.abs(exact).max())
    assert measured.ulp == pytest.approx(np.abs(error).max() / np.spacing(largest), rel=1e-6)
    assert measure(exact, found, coarser_type="bf16").ulp == pytest.approx(measured.ulp / 2**16)
    assert share_beyond(exact, found, 0.3) == (np.abs(error) > 0.3).mean()


def test_nothing_but_zeros() -> None:
    zeros, ones = np.zeros(5), np.ones(5)
    same = measure(zeros, zeros)
    assert (same.nrmse, same.cosine, same.scale, same.ulp) == (0.0, 1.0, 1.0, 0.0)
    other = measure(zeros, ones)
    assert (other.nrmse, other.cosine, other.max_abs) == (math.inf, 0.0, 1.0)
    assert measure(ones, zeros).nrmse == 1.0


def test_numbers_that_are_none_are_counted_and_nothing_else() -> None:
    measured = measure(np.array([1.0, 2.0, 3.0]), np.array([1.5, np.nan, np.inf]))
    assert (measured.not_finite, measured.max_abs, measured.worst) == (2, 0.5, 0)


# Verdicts.


@pytest.mark.parametrize(("precision", "floor"), FLOOR.items())
@pytest.mark.parametrize(("share", "verdict"), [(0.9, "close"), (1.1, "diverges")])
def test_a_multiple_of_the_floor_is_close(
    precision: str, floor: float, share: float, verdict: str, rng: np.random.Generator
) -> None:
    exact = rng.standard_normal((7, 11))
    allowed = TOLERANCES[precision].factor * floor
    other = record({"logits": noisy(exact, share * allowed, rng)})
    (stage,) = compare(record({"logits": exact}, **FLOOR), other, precision=precision).stages
    assert stage.verdict == verdict
    assert stage.noise_ratio == pytest.approx(share * TOLERANCES[precision].factor)
    assert (stage.limit, stage.floor) == (allowed, floor)


def test_a_floor_of_nothing_still_allows_the_last_place(rng: np.random.Generator) -> None:
    exact = rng.standard_normal((7, 11))
    rounded = record({"logits": exact.astype(np.float32)})
    (stage,) = compare(record({"logits": exact}, f32=0.0), rounded).stages
    assert stage.verdict == "close"
    assert stage.floor == 2.0**-24


def test_without_a_floor_a_fixed_error_is_allowed(rng: np.random.Generator) -> None:
    exact = rng.standard_normal((7, 11))
    for share, is_close in ((0.9, True), (1.1, False)):
        other = record({"logits": noisy(exact, share * TOLERANCES["f32"].assumed, rng)})
        found = compare(record({"logits": exact}), other, precision="f32")
        assert found.is_close == is_close
        assert found.stages[0].noise_ratio is None


def test_a_tolerance_replaces_the_floor(rng: np.random.Generator) -> None:
    exact = rng.standard_normal((7, 11))
    other = record({"logits": noisy(exact, 0.05, rng)}, {"precision": "int4"})
    assert compare(record({"logits": exact}, **FLOOR), other, tolerance=0.06).is_close
    assert not compare(record({"logits": exact}, **FLOOR), other, tolerance=0.04).is_close
    with pytest.raises(UsageError, match="precision 'int4' of a record has no noise floor: give --tolerance"):
        compare(record({"logits": exact}, **FLOOR), other)


def test_equal_shapes_and_numbers(rng: np.random.Generator) -> None:
    exact = rng.standard_normal((6, 4))
    reference = record({IDS: np.array([5, 2, 7]), "a": exact, "b": exact, "c": exact, "d": exact, "e": exact})
    broken = exact.copy()
    broken[2, 1] = np.nan
    other = record(
        {IDS: np.array([5, 2, 7]), "a": exact, "b": exact.reshape(6, 2, 2), "c": exact.T, "d": broken, "x": exact}
    )
    found = compare(reference, other)
    verdicts = {stage.stage: stage.verdict for stage in found.stages}
    assert verdicts == {IDS: "equal", "a": "equal", "b": "equal", "c": "shape", "d": "not finite"}
    assert (found.missing, found.extra) == (("e",), ("x",))
    assert found.first_divergence is not None
    assert found.first_divergence.stage == "c"
    assert not found.is_close


def test_an_id_that_differs_diverges() -> None:
    ones = np.ones((2, 2))
    reference = record({IDS: np.array([5, 2, 7]), "logits": ones})
    for ids in ([5, 3, 7], [5, 2]):
        found = compare(reference, record({IDS: np.array(ids), "logits": ones}))
        assert found.first_divergence is not None
        assert found.first_divergence.stage == IDS


def test_the_first_divergence_is_named_not_the_worst(rng: np.random.Generator) -> None:
    stages = {name: rng.standard_normal((5, 5)) for name in ("one", "two", "three")}
    wrong = stages | {"two": noisy(stages["two"], 1e-2, rng), "three": noisy(stages["three"], 1.0, rng)}
    first = compare(record(stages), record(dict(reversed(wrong.items()))), precision="f32").first_divergence
    assert first is not None
    assert first.stage == "two"


def test_the_last_rows_of_more_logits_are_compared(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((9, 6))
    for name, verdict in (("logits", "equal"), ("logits_before_cap", "equal"), ("text/layer_00/out", "shape")):
        (stage,) = compare(record({name: logits[-2:]}), record({name: logits})).stages
        assert stage.verdict == verdict
    (stage,) = compare(record({"logits": logits[-2:]}), record({"logits": logits[::-1]})).stages
    assert stage.verdict == "diverges"


def test_bf16_bits_are_numbers(rng: np.random.Generator) -> None:
    exact = rng.standard_normal((5, 7)).astype(np.float32)
    found = compare(record({"logits": exact}, **FLOOR), record({"logits": f32_to_bf16(exact)}))
    assert found.precision == "bf16"
    assert found.is_close
    assert found.stages[0].ulp is not None
    assert found.stages[0].ulp <= 0.5


def test_the_precision_is_what_is_said_or_seen(rng: np.random.Generator) -> None:
    exact = rng.standard_normal((5, 7)).astype(np.float32)
    rounded = (f32_to_bf16(exact).astype(np.uint32) << 16).view(np.float32)
    reference = record({"logits": exact})
    for other, precision in [
        (record({"logits": exact}), "f32"),
        (record({"logits": rounded}), "bf16"),
        (record({"logits": rounded}, {"precision": "f32"}), "f32"),
        (record({"logits": exact}, {"precision": "bf16"}), "bf16"),
        (record({"logits": exact}, {"precision": "f64"}), "f32"),
    ]:
        assert compare(reference, other).precision == precision


def test_nothing_in_common_is_an_error(rng: np.random.Generator) -> None:
    one, other = record({IDS: np.array([1]), "logits": np.ones(3)}), record({IDS: np.array([1]), "x": np.ones(3)})
    with pytest.raises(InputError, match=r"has no stage that a record has: it has x, expected such as logits"):
        compare(one, other)


def test_outliers_are_what_noise_does_not_explain(rng: np.random.Generator) -> None:
    exact = rng.standard_normal((100, 10))
    other = noisy(exact, FLOOR["f32"], rng)
    other[3:5] += 1e-3
    (stage,) = compare(record({"logits": exact}, **FLOOR), record({"logits": other}), precision="f32").stages
    assert stage.outliers == 0.02
    assert stage.worst is not None
    assert stage.worst[0] in (3, 4)


def test_json_has_no_infinity() -> None:
    found = compare(record({"logits": np.zeros(3)}), record({"logits": np.ones(3)}))
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["first_divergence"] == "logits"
    assert json.loads(text)["stages"][0]["nrmse"] is None


def test_json_has_no_nan_either() -> None:
    """Squares of such numbers are infinite, and a cosine of them is none."""
    found = compare(record({"logits": np.full(3, 1e200)}), record({"logits": np.full(3, 2e200)}))
    stage = json.loads(json.dumps(found.to_dict(), allow_nan=False))["stages"][0]
    assert (stage["verdict"], stage["cosine"], stage["max_abs"]) == ("diverges", None, 1e200)


def test_arrays_of_nothing_are_equal_where_their_shapes_are() -> None:
    empty = record({"a": np.ones((0, 5)), "b": np.ones(2)})
    assert [stage.verdict for stage in compare(empty, empty).stages] == ["equal", "equal"]
    assert compare(empty, record({"a": np.ones((0, 7)), "b": np.ones(2)})).stages[0].verdict == "equal"
    assert compare(empty, record({"a": np.ones((1, 5)), "b": np.ones(2)})).stages[0].verdict == "shape"


@pytest.mark.parametrize("tolerance", [-1.0, math.nan])
def test_a_tolerance_that_allows_nothing_is_refused(tolerance: float) -> None:
    one = record({"a": np.ones(3)})
    with pytest.raises(UsageError, match="expected a relative error, 0 or more"):
        compare(one, one, tolerance=tolerance)


# Summaries.


def test_a_summary_is_of_the_last_rows_too(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((9, 60))
    golden = summarised({"logits": logits[-1:]})
    assert compare(golden, record({"logits": logits}), precision="f32").is_close
    assert not compare(golden, record({"logits": logits[::-1]}), precision="f32").is_close


@pytest.mark.parametrize("scale", [1, 1000])
def test_a_few_huge_values_are_part_of_what_an_error_is_relative_to(scale: float, rng: np.random.Generator) -> None:
    """As in Gemma's residual stream: one row has a channel that is most of the norm."""
    exact = rng.standard_normal((64, 500))
    exact[0, 7] = 64 * scale
    full, sampled = (
        compare(kind({"a": exact}), record({"a": exact + 1e-3 * rng.standard_normal(exact.shape)}), tolerance=1.0)
        for kind in (record, summarised)
    )
    assert full.stages[0].nrmse is not None
    assert sampled.stages[0].nrmse == pytest.approx(full.stages[0].nrmse, rel=0.2)


def test_summaries_see_what_samples_see(rng: np.random.Generator) -> None:
    exact = rng.standard_normal((40, 50))
    reference, doubled = summarised({"logits": exact}), record({"logits": exact * 2})
    (stage,) = compare(reference, doubled, precision="f32").stages
    assert (stage.verdict, stage.is_sampled) == ("diverges", True)
    assert stage.scale == pytest.approx(2.0, rel=1e-6)
    assert stage.nrmse == pytest.approx(1.0, rel=1e-6)
    for other in (record({"logits": exact}), summarised({"logits": noisy(exact, 1e-6, rng)})):
        assert compare(reference, other, precision="f32").is_close


@pytest.mark.parametrize("change", ["one large value", "norm", "mean", "NaN"])
def test_summaries_see_what_lies_beside_the_samples(change: str, rng: np.random.Generator) -> None:
    exact = rng.standard_normal((40, 50)) + 1
    other = exact.copy().reshape(-1)
    beside = np.setdiff1d(np.arange(other.size), sampled_positions(other.size))
    if change == "one large value":
        other[beside[0]] = 1e4
    elif change == "norm":
        other[beside] *= 1.01
    elif change == "mean":
        other[beside] *= -1
    else:
        other[beside[0]] = np.nan
    (stage,) = compare(summarised({"a": exact}), record({"a": other.reshape(exact.shape)}), precision="f32").stages
    assert not stage.is_good
    assert stage.max_abs is not None
    if change == "one large value":
        assert stage.max_abs > 9000


@pytest.mark.parametrize("size", [40, 200, 5000])
@pytest.mark.parametrize("kept", [64, 129])
def test_summaries_of_different_length_are_compared_by_what_both_have(
    size: int, kept: int, rng: np.random.Generator
) -> None:
    exact = rng.standard_normal((size,))
    wrong = exact.copy()
    worst = int(sampled_positions(size, kept)[-1])
    wrong[worst] += 0.5
    short = Stage(exact.shape, "f64", lambda: exact, shorten(summarize(exact), size, kept), FLOOR)
    shortened = Record("short", {}, {"a": short})
    for reference, other in (
        (shortened, summarised({"a": exact})),
        (summarised({"a": exact}), shortened),
        (shortened, record({"a": exact})),
    ):
        (stage,) = compare(reference, other, precision="f32").stages
        assert stage.verdict == "equal"
    (stage,) = compare(shortened, record({"a": wrong}), precision="f32").stages
    assert (stage.verdict, stage.worst) == ("diverges", (worst,))
    assert stage.max_abs == pytest.approx(0.5)


# Where an error is made.


@pytest.fixture(scope="module")
def right() -> tuple[Run, Record]:
    """The true run of a small model, and its record with floors."""
    run = museum.make_run()._replace(answer_ids=())
    stages = museum.stages_of(run)
    floors = noise_floors(run.model, run.pixel_values, run.prompt_ids, [5], lambda name: rows(name, stages), wanted)
    kept = {name: plain_stage(rows(name, stages), floors.get(name, {})) for name in stages}
    return run, Record("truth", {}, kept)


def rows(name: str, stages: Mapping[str, Array]) -> Array:
    """Logits of the last row, as a run has them."""
    return stages[name][-1:] if name.startswith("logits") else stages[name]


def wanted(stage: str) -> bool:
    return True


def rounded_record(run: Run, precision: str) -> Record:
    """A run rounded as Transformers rounds."""
    trace = Trace()
    run_rounded(run.model, precision, run.pixel_values, run.prompt_ids, [5], trace)
    return record({IDS: np.array(run.prompt_ids), **trace.stages}, {"precision": precision})


def with_isolation(run: Run, reference: Record, other: Record) -> Comparison:
    comparison = compare(reference, other)
    blocks = isolate(run_behind(run.model, reference, other), other, precision=comparison.precision)
    return dataclasses.replace(comparison, isolated=tuple(blocks))


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_rounding_alone_is_close(right: tuple[Run, Record], precision: str) -> None:
    run, truth = right
    comparison = with_isolation(run, truth, rounded_record(run, precision))
    assert comparison.is_close
    assert comparison.precision == precision
    ratios = [stage.noise_ratio for stage in comparison.stages if stage.floor and stage.nrmse]
    assert ratios == pytest.approx([1.0] * len(ratios), rel=1e-3), "it is the run that the floor was measured with"
    assert {stage.stage for stage in comparison.isolated} == set(truth.stages)


def test_a_wrong_layer_is_named_and_later_ones_are_not(right: tuple[Run, Record]) -> None:
    """The second layer of four has damaged weights: everything after it diverges, but one block makes an error."""
    run, truth = right
    layers = list(run.model.params.language_model.layers)
    layers[1] = layers[1]._replace(o_proj=layers[1].o_proj[::-1])
    text = run.model.params.language_model._replace(layers=tuple(layers))
    wrong = run._replace(model=run.model._replace(params=run.model.params._replace(language_model=text)))
    other = record({name: rows(name, s) for s in [museum.stages_of(wrong)] for name in s}, {"precision": "f32"})
    comparison = with_isolation(run, truth, other)
    assert comparison.first_divergence is not None
    assert comparison.first_divergence.stage == "text/layer_01/o_proj"
    assert not comparison.stages[-1].is_good
    made = [stage.stage for stage in comparison.isolated if not stage.is_good]
    assert made[0] == "text/layer_01/o_proj"
    assert {name.rsplit("/", 1)[0] for name in made} == {"text/layer_01"}
    assert not comparison.is_close


def test_an_error_in_the_vision_tower_is_named(right: tuple[Run, Record]) -> None:
    run, truth = right
    wrong = with_operations(run, layer_norm=lambda x, scale, bias, eps: REFERENCE.layer_norm(x, scale, bias, 1e-2))
    stages = museum.stages_of(wrong)
    ends = {name: rows(name, stages) for name in stages if name.endswith(museum.BLOCK_ENDS)}
    comparison = with_isolation(run, truth, record(ends, {"precision": "f32"}))
    made = [stage.stage for stage in comparison.isolated if not stage.is_good]
    assert made == [f"vision/layer_{i:02d}/out" for i in range(2)] + ["vision/post_layernorm"]


def test_isolation_stops_where_nothing_can_be_computed(right: tuple[Run, Record]) -> None:
    run, truth = right
    stages = {name: stage.read() for name, stage in truth.stages.items()}
    broken = {**stages, "text/layer_00/out": np.full_like(stages["text/layer_00/out"], np.nan)}
    found = list(isolate(run_behind(run.model, truth, truth), record(broken), precision="f32"))
    assert found[-1].stage == "text/layer_00/out"
    assert found[-1].verdict == "not finite"


def test_isolation_needs_whole_stages(right: tuple[Run, Record]) -> None:
    run, truth = right
    summaries = summarised({name: stage.read() for name, stage in truth.stages.items() if name != IDS})
    with pytest.raises(UsageError, match="needs the ends of blocks in full"):
        list(isolate(run_behind(run.model, truth, summaries), summaries, precision="f32"))


# For the tests of a port.


def test_assert_trace_close(tmp_path: Path, right: tuple[Run, Record]) -> None:
    run, truth = right
    stages = {name: stage.read() for name, stage in truth.stages.items() if name != IDS}
    path = tmp_path / "truth.safetensors"
    with FullWriter(path, wanted, len(stages)) as writer:
        for name, array in stages.items():
            writer(name, array)
        floors = {name: stage.floors for name, stage in truth.stages.items()}
        writer.finish({"precision": "f64"}, np.array(run.prompt_ids), floors)
    port = {name: array.astype(np.float32) for name, array in stages.items()}
    assert assert_trace_close(port, path).is_close
    assert assert_trace_close(path, str(path)).is_close
    port["text/layer_02/out"] = port["text/layer_02/out"] * np.float32(1.01)
    with pytest.raises(AssertionError, match=r"1 of \d+ stages diverge") as raised:
        assert_trace_close(port, path)
    assert "text/layer_02/out: diverges, error 0.01, allowed" in str(raised.value)
    assert "scale 1.01" in str(raised.value)
    assert assert_trace_close(port, path, tolerance=0.02).is_close
    port["text/layer_02/out"] = port["text/layer_02/out"][:-1]
    with pytest.raises(AssertionError, match=r"text/layer_02/out: shape \(\d+, 32\), expected \(\d+, 32\)"):
        assert_trace_close(port, path)
    with pytest.raises(InputError, match="OTHER has no stage"):
        assert_trace_close({"x": np.ones(3)}, path)


def test_what_numpy_makes_an_array_of_is_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", **{"text/layer_00/out": np.ones(3), "logits": np.ones(3)})
    assert assert_trace_close({"logits": [1.0, 1.0, 1.0]}, tmp_path / "golden.npz").is_close
    with pytest.raises(UsageError, match=r"logits: expected an array, got list \(.*\): convert it to float32 in NumPy"):
        assert_trace_close({"logits": [[1.0], [1.0, 2.0]]}, tmp_path / "golden.npz")


def test_what_is_required_has_to_be_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "golden.npz", **{"text/layer_00/out": np.ones(3), "logits": np.ones(3)})
    port = {"logits": np.ones(3)}
    assert assert_trace_close(port, tmp_path / "golden.npz", required="^logits$").is_close
    for required, message in [
        ("out$|logits", "OTHER lacks 1 of 2 required stages, text/layer_00/out among them"),
        ("out/", "has no such stage, expected such as text/layer_00/out, logits"),
        ("(", "expected a regular expression"),
    ]:
        with pytest.raises(UsageError, match=message):
            assert_trace_close(port, tmp_path / "golden.npz", required=required)


def test_float16_is_not_judged_by_the_noise_of_float32(rng: np.random.Generator) -> None:
    exact = rng.standard_normal((3, 4))
    records = [Record("x", {}, {"logits": plain_stage(exact.astype(kind))}) for kind in (np.float64, np.float16)]
    with pytest.raises(UsageError, match="x holds float16, for whose noise there is no floor: give --precision bf16"):
        compare(*records)
    assert compare(*records, precision="bf16").is_close
    assert compare(*records, tolerance=1e-3).is_close


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"config": '{"text": {"a": 1, "b": [2]}}'}, "another model: 'text.b' is [1] in REFERENCE, [2] in OTHER"),
        ({"answer_ids": "[7, 8, 9]"}, "another answer: token 2 is 5 in REFERENCE, 8 in OTHER"),
        ({"config": "{", "answer_ids": "7"}, None),
        ({}, None),
    ],
)
def test_runs_of_another_model_or_answer_are_told_apart(facts: Mapping[str, str], said: str | None) -> None:
    ours = {"config": '{"text": {"a": 1, "b": [1]}}', "answer_ids": "[7, 5]"}
    stages = {"logits": plain_stage(np.ones((2, 3)))}
    assert compare(Record("a", ours, stages), Record("b", facts, stages)).runs_apart == said


def test_a_name_that_the_reference_lacks_is_refused(tmp_path: Path) -> None:
    """Or a test with a slip in a name would pass for ever, of what it does not look at."""
    np.savez(tmp_path / "golden.npz", **{"text/layer_00/out": np.ones(3), "logits": np.ones(3)})
    port = {"text/layer_0/out": np.zeros(3), "logits": np.ones(3)}
    with pytest.raises(UsageError, match=r"text/layer_0/out: .* has no such stage, expected such as logits"):
        assert_trace_close(port, tmp_path / "golden.npz")
