"""Where an error comes from: each block of the right model, run on the input that OTHER itself had there.

A comparison of whole runs shows what has come together up to a stage. Here a block starts from OTHER's numbers, so what
differs behind it was made inside it, and one wrong layer does not hide the next. The noise that is allowed for is that
of the block alone, computed on the same input.
"""

from collections.abc import Iterator, Mapping, Sequence

from pg2ref.arrays import Array, widen
from pg2ref.errors import UsageError
from pg2ref.model.rounding import F32, transformers_tables
from pg2ref.parity.blocks import Block, blocks_of, last_rows_alone, run_blocks
from pg2ref.parity.bugs.run import Run
from pg2ref.parity.compare import StageComparison, compare_stage
from pg2ref.parity.difference import measure
from pg2ref.parity.records import Record, plain_stage

VISION_KINDS = ("pixels", "vision")  # of blocks, that belong to the vision tower


def isolate(run: Run, other: Record, *, precision: str) -> Iterator[StageComparison]:
    """Each stage that OTHER has, against that of a block fed with OTHER's own input; in the order of computation.

    Args:
        run: the right model in float64 on the reference operations, and what both were given.
        other: with the ends of blocks in full; between two of them several blocks count as one.
        precision: OTHER's, `f32` or `bf16`.

    Raises:
        UsageError: OTHER has no end of a block in full.
    """
    stages = {name: stage for name, stage in other.stages.items() if stage.summary is None}
    rounded = run._replace(model=run.model._replace(dtype=F32, cache_dtype=F32))
    known: dict[str, Array] = {}
    pending: list[Block] = []
    isolated = 0
    for block in blocks_of(run):
        pending.append(block)
        if block.output not in stages:
            continue
        if block.kind == "logits":
            known = last_rows_alone(block, known, len(stages[block.output].shape) and stages[block.output].shape[0])
        expected = run_in_order(run, pending, known)
        noisy = run_in_order(rounded, pending, known, precision)
        compared = [
            compare_stage(
                name, plain_stage(array, {precision: measure(array, noisy[name]).nrmse}), stages[name], precision
            )
            for name, array in expected.items()
            if name in stages
        ]
        yield from compared
        isolated += 1
        if any(stage.verdict in ("shape", "not finite") for stage in compared):
            return  # nothing can be computed from such numbers
        known = {**known, block.output: stages[block.output].read().reshape(expected[block.output].shape)}
        pending = []
    if not isolated:
        raise UsageError(
            f"--isolate needs the ends of blocks in full, such as text/layer_00/out; {other.name} has none"
        )


def run_in_order(
    run: Run, blocks: Sequence[Block], known: Mapping[str, Array], precision: str | None = None
) -> dict[str, Array]:
    """Every stage of consecutive blocks, fed with `known`; with a precision, rounded as Transformers does in it."""
    numbers = {name: widen(array, run.model.dtype) for name, array in known.items()}
    found: dict[str, Array] = {}
    for block in blocks:
        if precision is not None:
            tables = transformers_tables(precision)
            table = tables.vision if block.kind in VISION_KINDS else tables.text
            run = run._replace(model=run.model._replace(ops=table))
        found |= run_blocks(run, [block], {**numbers, **found})
    return found
