"""The kernels in precision bf16, through all towers: what they change is less than what rounding to bf16 changes.

Both round the inputs of linear layers and of attention alike, but a number near the middle of two bf16 numbers may
fall to either side, and layers pass that on. So the yardstick, for each stage, is the noise floor of this precision:
what rounding those inputs changes at all, computed in float64 with it and without. (That of Transformers, which rounds
every stage to bf16, is model/rounding.py's.)
"""

from pathlib import Path

import golden_records
import numpy as np
import pytest
import small_models
from closeness import BOUNDS

from pg2ref.model import backend
from pg2ref.model.backend import REFERENCE_BF16, Ops
from pg2ref.model.paligemma import PaliGemma
from pg2ref.parity.difference import measure


def bf16_model(folder: Path, ops: Ops, dtype: type) -> PaliGemma:
    """As `precision="bf16"` makes it: keys and values are stored in bf16."""
    return small_models.open_model(folder, dtype)._replace(ops=ops, cache_dtype=np.dtype(np.uint16))


def shares_of_noise(folder: Path, case_inputs: small_models.Inputs, ops: Ops) -> dict[str, float]:
    """For each stage the difference of a table in float32 from the rounded truth, as a share of the noise floor."""
    truth = small_models.our_stages(small_models.open_model(folder, np.float64), case_inputs)
    rounded = small_models.our_stages(bf16_model(folder, REFERENCE_BF16, np.float64), case_inputs)
    found = small_models.our_stages(bf16_model(folder, ops, np.float32), case_inputs)
    shares = {}
    for stage, expected in rounded.items():
        floor = measure(expected, truth[stage]).nrmse
        if floor > 1e-6:
            shares[stage] = measure(expected, found[stage]).nrmse / floor
        else:  # nothing was rounded to bf16 so far
            np.testing.assert_allclose(found[stage], expected, rtol=1e-6)
    return shares


@pytest.mark.parametrize("case_name", small_models.CASES)
def test_stages_lie_within_the_noise_of_bf16(case_name: str) -> None:
    record = golden_records.read_record(case_name)
    shares = shares_of_noise(record.folder, record.inputs, backend.fast("bf16"))
    assert "vision/layer_00/out" in shares
    assert "logits" in shares
    bound = BOUNDS["bf16 stages"].factor
    assert {stage: share for stage, share in shares.items() if share > bound} == {}


def test_inputs_cut_off_instead_of_rounded_are_noticed() -> None:
    """The measure itself: a table that drops the lower half of its inputs' bits has twice the error, of one sign."""
    kernels = backend.fast("bf16")

    def cut(x_TD: np.ndarray) -> np.ndarray:
        return (np.ascontiguousarray(x_TD, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    table = kernels._replace(
        linear=lambda x_TD, *rest: kernels.linear(cut(x_TD), *rest),
        linear_each=lambda x_TD, *rest: kernels.linear_each(cut(x_TD), *rest),
        gated_linear=lambda x_TD, *rest: kernels.gated_linear(cut(x_TD), *rest),
    )
    record = golden_records.read_record("base")
    assert max(shares_of_noise(record.folder, record.inputs, table).values()) > BOUNDS["bf16 stages"].factor
