"""Parity without torch: every case against what Transformers computed when the golden records were made."""

import golden_records
import pytest
import small_models

from pg2ref.inputs.image import pixel_values, read_image


@pytest.mark.parametrize("case_name", small_models.CASES)
def test_stages_agree_with_the_record(case_name: str) -> None:
    record = golden_records.read_record(case_name)
    assert len(record.stages) > 10
    golden_records.check_stages(small_models.open_model(record.folder), record)


@pytest.mark.parametrize("case_name", [name for name, case in small_models.CASES.items() if not case.causal])
def test_answers_agree_with_the_record(case_name: str) -> None:
    record = golden_records.read_record(case_name)
    golden_records.check_answer(small_models.open_model(record.folder), record)


def test_an_answer_ends_at_the_first_end_of_text_id() -> None:
    """The base model's answer, cut behind the first of the two ids that end this case's."""
    stopped, base = golden_records.read_record("end_of_text").answer, golden_records.read_record("base").answer
    assert stopped is not None
    assert base is not None
    ends = set(small_models.CASES["end_of_text"].top["eos_token_id"])
    assert len(ends) == 2
    assert not ends & set(stopped[:-1])
    assert stopped[-1] in ends
    assert 5 < len(stopped) < len(base) == small_models.MAX_NEW_TOKENS
    assert stopped == base[: len(stopped)]


def test_pixels_are_those_of_the_record() -> None:
    golden_records.check_pixels(lambda image, side: pixel_values(read_image(image), side))


@pytest.mark.parametrize("case_name", small_models.CASES)
def test_records_name_what_made_them(case_name: str) -> None:
    metadata = golden_records.read_record(case_name).metadata
    assert metadata["format"] == "pg2ref-golden/1"
    assert (metadata["transformers"], metadata["torch"].split("+")[0]) == ("5.23.0", "2.13.0")
