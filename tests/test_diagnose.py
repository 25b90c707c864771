"""Every bug of the museum is named from what a model with it computed, and errors of another kind are not."""

import json
from collections.abc import Callable

import museum
import numpy as np
import pytest

from pg2ref.arrays import Array, widen
from pg2ref.errors import UsageError
from pg2ref.model.backend import REFERENCE_BF16
from pg2ref.parity import diagnose as diagnose_module
from pg2ref.parity.bugs.collection import BUGS
from pg2ref.parity.bugs.run import Run, with_language_model, with_operations
from pg2ref.parity.diagnose import diagnose
from pg2ref.parity.difference import measure
from pg2ref.parity.records import Record, Stage, step_of
from pg2ref.parity.summary import summarize
from pg2ref.parity.weightless import diagnose_without_model
from pg2ref.quantized import quantize_matrix

POINTS: dict[str, Callable[[str], bool]] = {
    "every stage": lambda stage: True,
    "block ends": lambda stage: stage.endswith(museum.BLOCK_ENDS),
    "logits alone": lambda stage: stage == "logits",
}


@pytest.fixture(scope="module")
def truth() -> Run:
    return museum.make_run()


def diagnosed(truth: Run, broken: Run, points: Callable[[str], bool] = POINTS["every stage"]) -> tuple[str, ...]:
    return diagnose(truth, museum.record_of(museum.stages_of(broken), points)).names


@pytest.mark.parametrize("points", POINTS)
def test_the_right_model_is_clean(truth: Run, points: str) -> None:
    found = diagnose(truth, museum.record_of(museum.stages_of(museum.make_run(np.float32)), POINTS[points]))
    assert found.is_clean
    assert found.blocks_compared == {"every stage": 12, "block ends": 12, "logits alone": 1}[points]


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("name", BUGS)
def test_each_bug_is_named(truth: Run, name: str, points: str) -> None:
    found = diagnose(
        truth, museum.record_of(museum.stages_of(BUGS[name].inject(museum.make_run(np.float32))), POINTS[points])
    )
    if name == "positions-from-zero" and points != "every stage":  # it shows in queries and keys alone
        assert found.is_clean
        return
    assert found.names == (name,)
    assert found.causes[0].rivals == ()


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("name", museum.OTHER_ERRORS)
def test_an_error_of_another_kind_is_unknown(truth: Run, name: str, points: str) -> None:
    broken = museum.OTHER_ERRORS[name](museum.make_run(np.float32))
    assert set(diagnosed(truth, broken, POINTS[points])) == {"unknown"}


def test_two_bugs_in_different_blocks_are_both_named(truth: Run) -> None:
    run = museum.make_run(np.float32)
    for name in ("bgr", "image-over-sqrt", "rmsnorm-weight", "missing-final-cap"):
        run = BUGS[name].inject(run)
    assert diagnosed(truth, run) == ("bgr", "image-over-sqrt", "rmsnorm-weight", "missing-final-cap")


def test_a_bug_that_is_hardly_nearer_than_the_right_model_is_not_named(
    truth: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers between both, a little nearer to the bug's, with a limit that lies between both errors."""
    right, broken = museum.stages_of(truth), museum.stages_of(BUGS["gelu-erf"].inject(truth))
    stage = "vision/layer_00/out"
    apart = measure(right[stage], broken[stage]).nrmse
    between = {"vision/patch_embeddings": right["vision/patch_embeddings"]}
    between[stage] = 0.4 * right[stage] + 0.6 * broken[stage]
    monkeypatch.setitem(diagnose_module.ROUNDING, "f32", 0.5 * apart)
    assert diagnose(truth, museum.record_of(between)).names == ("unknown",)
    between[stage] = broken[stage]
    assert diagnose(truth, museum.record_of(between)).names == ("gelu-erf",)


def test_the_first_stage_that_differs_is_named(truth: Run) -> None:
    broken = museum.stages_of(BUGS["gqa-tiled"].inject(museum.make_run(np.float32)))
    (cause,) = diagnose(truth, museum.record_of(broken, lambda stage: not stage.endswith("weights"))).causes
    assert cause.stage == "text/layer_00/attention_out"
    assert cause.error > 0.1
    assert cause.left is not None
    assert cause.left < 1e-6


def test_bugs_that_a_record_cannot_tell_apart_are_rivals(truth: Run) -> None:
    """Layer 0 alone: without a window it is a full layer, and so it is where the types are swapped."""
    broken = museum.stages_of(BUGS["no-window"].inject(museum.make_run(np.float32)))
    (cause,) = diagnose(
        truth, museum.record_of(broken, lambda s: s in ("prefix/embeddings", "text/layer_00/out"))
    ).causes
    assert {cause.bug, *cause.rivals} == {"no-window", "layers-swapped"}


def test_many_unknown_blocks_end_the_search(truth: Run) -> None:
    broken = with_operations(museum.make_run(np.float32), rms_norm=lambda x, scale, eps: x)
    found = diagnose(truth, museum.record_of(museum.stages_of(broken)))
    assert found.names == ("unknown",) * diagnose_module.MOST_UNKNOWN


def test_numbers_that_are_not_finite_are_unknown(truth: Run) -> None:
    stages = museum.stages_of(museum.make_run(np.float32))
    stages["text/layer_01/out"][0, 0] = np.nan
    (cause,) = diagnose(truth, museum.record_of(stages)).causes
    assert (cause.stage, cause.error, cause.bug) == ("text/layer_01/out", np.inf, None)


def test_a_stage_of_another_width_ends_the_search(truth: Run) -> None:
    """Nothing can be computed from it; a record with steps like that is no error either."""
    stages = museum.stages_in_steps(museum.make_run(np.float32))
    cut = {name: array[..., :-1] if name.endswith("text/layer_01/out") else array for name, array in stages.items()}
    found = diagnose(truth, museum.record_of(cut))
    assert found.names == ("unknown",)
    assert (found.causes[0].stage, found.causes[0].error) == ("text/layer_01/out", np.inf)


def test_a_bug_that_cannot_be_injected_is_left_out(truth: Run) -> None:
    """A quantised head cannot be transposed."""
    quantized = quantize_matrix(widen(truth.model.params.language_model.lm_head, np.dtype(np.float32)), 8)  # type: ignore[arg-type]
    run = with_language_model(truth, lm_head=quantized)
    stages = museum.stages_of(BUGS["missing-final-cap"].inject(run))
    assert diagnose(run, museum.record_of(stages)).names == ("missing-final-cap",)


def test_bf16_is_clean_in_its_own_precision_and_a_bug_in_it_is_named(truth: Run) -> None:
    run = museum.make_run(np.float32)
    run = run._replace(model=run.model._replace(ops=REFERENCE_BF16))
    assert diagnose(truth, museum.record_of(museum.stages_of(run)), precision="bf16").is_clean
    assert not diagnose(truth, museum.record_of(museum.stages_of(run)), precision="f32").is_clean
    broken = museum.record_of(museum.stages_of(BUGS["rope-interleaved"].inject(run)))
    assert diagnose(truth, broken, precision="bf16").names == ("rope-interleaved",)


def test_steps_of_decoding_are_rows_of_the_answer(truth: Run) -> None:
    """A window shows behind the prompt alone: the trace of a prompt and some steps is enough to see it."""
    run = museum.make_run(np.float32)
    assert diagnose(truth, museum.record_of(museum.stages_in_steps(run))).is_clean
    for name in ("window-too-large", "window-too-small", "no-window", "cap-after-mask", "rope-interleaved"):
        stages = museum.stages_in_steps(BUGS[name].inject(run))
        assert diagnose(truth, museum.record_of(stages)).names == (name,)


@pytest.mark.parametrize("order", ["alphabet", "backwards"])
def test_names_may_come_in_any_order(truth: Run, order: str) -> None:
    """A folder lists them by the alphabet, where steps come before the prompt and the tenth before the second."""
    run = museum.make_run(np.float32)
    for name in ("missing-final-cap", "window-too-large"):
        record = museum.record_of(museum.stages_in_steps(BUGS[name].inject(run)))
        stages = dict(sorted(record.stages.items(), reverse=order == "backwards"))
        assert list(stages) != list(record.stages)
        assert diagnose(truth, Record("other", record.facts, stages)).names == (name,)
        joined = diagnose_module.joined_stages(Record("other", {}, stages))
        for stage, array in diagnose_module.joined_stages(record).items():
            np.testing.assert_array_equal(joined[stage], array)


def test_the_number_of_a_step_counts() -> None:
    assert [step_of(name) for name in ("step_012/logits", "step_x/logits", "logits", "step_1")] == [
        12,
        0,
        0,
        0,
    ]
    stages = {f"step_{step}/out": Stage((1, 1), "f32", lambda step=step: np.full((1, 1), step)) for step in (10, 9)}
    stages["out"] = Stage((1, 1), "f32", lambda: np.zeros((1, 1)))
    assert diagnose_module.joined_stages(Record("other", {}, stages))["out"].ravel().tolist() == [0, 9, 10]


def test_json_of_a_diagnosis_has_no_infinity(truth: Run) -> None:
    stages = museum.stages_of(museum.make_run(np.float32))
    stages["text/layer_01/out"] = stages["text/layer_01/out"] * np.float32(np.nan)
    found = diagnose(truth, museum.record_of(stages))
    assert any(cause.error == np.inf for cause in found.causes)
    assert '"error": null' in json.dumps(found.to_dict(), allow_nan=False)


def test_heads_may_lie_side_by_side(truth: Run) -> None:
    stages: dict[str, Array] = museum.stages_of(BUGS["rope-interleaved"].inject(museum.make_run(np.float32)))
    flat = {name: array.reshape(len(array), -1) if "query" in name else array for name, array in stages.items()}
    assert diagnose(truth, museum.record_of(flat)).names == ("rope-interleaved",)


def test_summaries_are_refused(truth: Run) -> None:
    stages = museum.stages_of(museum.make_run(np.float32))
    summaries = {name: Stage(a.shape, "f32", lambda: stages["logits"], summarize(a)) for name, a in stages.items()}
    with pytest.raises(UsageError, match="holds no stage in full that can be diagnosed: record it with --mode full"):
        diagnose(truth, Record("other", {}, summaries))


OUT_OF_REACH = (  # what lies between two matrices, and what steps do not do: those behind are not there yet
    "gelu-erf",
    "head-transposed",
    "answer-sees-ahead",
)


@pytest.mark.parametrize("name", BUGS)
def test_two_traces_alone_name_what_needs_no_matrix(truth: Run, name: str) -> None:
    """The pixels of another resize cannot be made without the picture, so they are unknown."""
    found = museum.without_weights(truth, BUGS[name].inject(museum.make_run(np.float32)))
    assert found == {"no-antialias": ("unknown",)}.get(name, () if name in OUT_OF_REACH else (name,))


@pytest.mark.parametrize("name", museum.OTHER_ERRORS)
def test_two_traces_alone_do_not_guess(truth: Run, name: str) -> None:
    assert set(museum.without_weights(truth, museum.OTHER_ERRORS[name](museum.make_run(np.float32)))) <= {"unknown"}


def test_without_weights_and_facts_nothing_is_said(truth: Run) -> None:
    record = museum.record_of(museum.stages_of(truth))
    assert diagnose_without_model(record, record) is None
