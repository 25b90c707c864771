"""Key ranges as pictures, and against the libraries' rules written as booleans."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pg2ref.errors import UsageError
from pg2ref.model import masks
from pg2ref.model.masks import everything, prefix_lm
from pg2ref.policy import WINDOW_POLICIES

Picture = list[str]

# prefix_length 4, window 3: drawn by hand from the libraries' sources.
PICTURES: dict[str, str] = {
    "transformers": "xxxx.. xxxx.. xxxx.. xxxx.. ..xxx. ...xxx",
    "big_vision": "xxxx.. xxxx.. xxxx.. xxxx.. xxxxx. xxxxxx",
    "keras": "xxx... xxxx.. xxxx.. .xxx.. ..xxx. ...xxx",
    "gemma_cpp": "xxxx.. xxxx.. xxxx.. .xxx.. ..xxx. ...xxx",
    "transformers_4": "xxxx.. xxxx.. xxxx.. .xxx.. ..xxx. ...xxx",
}


def draw(num_keys: int, *, prefix_length: int, window: int | None = None, policy: str = "transformers") -> Picture:
    ranges = prefix_lm(np.arange(num_keys), prefix_length=prefix_length, window=window, policy=policy)
    return ["".join("x" if may else "." for may in row) for row in ranges.allowed_TS(num_keys)]


def rule(q: int, k: int, prefix: int, window: int | None, policy: str) -> bool:
    """Whether slot q may read slot k: by the sources that model/masks.py names."""
    both_prefix = q < prefix and k < prefix
    readable = k <= q or both_prefix
    if window is None or policy == "big_vision":
        return readable
    if policy == "transformers":
        return (k <= q and k > q - window) or both_prefix
    if policy == "keras":
        return readable and abs(q - k) <= window - 1
    return readable and k > q - window  # gemma.cpp: start at pos - (W - 1); Transformers 4.4x: the same cut


def test_every_policy_has_a_picture() -> None:
    assert set(PICTURES) == set(WINDOW_POLICIES)


@pytest.mark.parametrize("policy", PICTURES)
def test_pictures(policy: str) -> None:
    assert draw(6, prefix_length=4, window=3, policy=policy) == PICTURES[policy].split()


def test_the_docstring_draws_what_is_computed() -> None:
    lines = (masks.__doc__ or "").splitlines()
    header = next(number for number, line in enumerate(lines) if line.strip().startswith("transformers  "))
    assert "Six tokens, prefix_length 4, window 3:" in lines[header - 2]
    titles = re.split(r" {2,}", lines[header].strip())
    columns = zip(*(re.split(r" {2,}", line.strip()) for line in lines[header + 1 : header + 7]), strict=True)
    drawn = {
        policy: [row.replace(" ", "") for row in column]
        for title, column in zip(titles, columns, strict=True)
        for policy in title.split(", ")
    }
    assert set(drawn) == set(WINDOW_POLICIES)
    for policy, picture in drawn.items():
        assert draw(6, prefix_length=4, window=3, policy=policy) == picture


def test_the_picture_that_transformers_prints() -> None:
    """Printed by Transformers 5.23 for prefix 7, suffix 3, window 4."""
    prefix = ["xxxxxxx..."] * 7
    assert draw(10, prefix_length=7, window=4) == [*prefix, "....xxxx..", ".....xxxx.", "......xxxx"]
    assert draw(10, prefix_length=7) == [*prefix, "xxxxxxxx..", "xxxxxxxxx.", "xxxxxxxxxx"]


@pytest.mark.parametrize("policy", WINDOW_POLICIES)
def test_without_a_prefix_it_is_causal(policy: str) -> None:
    assert draw(4, prefix_length=0, policy=policy) == ["x...", "xx..", "xxx.", "xxxx"]
    windowed = ["x...", "xx..", "xxx.", "xxxx"] if policy == "big_vision" else ["x...", "xx..", ".xx.", "..xx"]
    assert draw(4, prefix_length=0, window=2, policy=policy) == windowed


@pytest.mark.parametrize("policy", set(WINDOW_POLICIES) - {"big_vision"})
def test_a_window_of_one_is_the_token_itself(policy: str) -> None:
    rows = draw(5, prefix_length=2, window=1, policy=policy)
    prefix = {"transformers": ["xx...", "xx..."], "keras": ["x....", ".x..."]}.get(policy, ["xx...", ".x..."])
    assert rows == [*prefix, "..x..", "...x.", "....x"]


@pytest.mark.parametrize("policy", WINDOW_POLICIES)
@pytest.mark.parametrize("window", [7, 8, 4096])
def test_a_window_of_the_whole_length_changes_nothing(policy: str, window: int) -> None:
    assert draw(7, prefix_length=3, window=window, policy=policy) == draw(7, prefix_length=3)


@pytest.mark.parametrize("policy", WINDOW_POLICIES)
def test_rows_of_decoding_are_rows_of_the_whole(policy: str) -> None:
    whole = prefix_lm(np.arange(11), prefix_length=5, window=3, policy=policy)
    for slot in range(5, 11):
        row = prefix_lm(np.array([slot]), prefix_length=5, window=3, policy=policy)
        assert (row.first_key_T[0], row.last_key_T[0]) == (whole.first_key_T[slot], whole.last_key_T[slot])


@given(
    length=st.integers(1, 23),
    prefix=st.integers(0, 23),
    window=st.one_of(st.none(), st.integers(1, 26)),
    policy=st.sampled_from(WINDOW_POLICIES),
)
@settings(deadline=None, max_examples=300)
def test_ranges_are_the_rules(length: int, prefix: int, window: int | None, policy: str) -> None:
    prefix = min(prefix, length)
    expected = [
        "".join("x" if rule(q, k, prefix, window, policy) else "." for k in range(length)) for q in range(length)
    ]
    assert draw(length, prefix_length=prefix, window=window, policy=policy) == expected
    ranges = prefix_lm(np.arange(length), prefix_length=prefix, window=window, policy=policy)
    own = np.arange(length)
    assert (ranges.first_key_T <= own).all()  # every row reads at least itself
    assert (ranges.last_key_T >= own).all()
    assert (ranges.first_key_T >= 0).all()
    assert (ranges.last_key_T < length).all()


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(UsageError, match="'keras_hub' is not one of transformers, big_vision") as raised:
        prefix_lm(np.arange(3), prefix_length=1, window=2, policy="keras_hub")
    assert raised.value.exit_code == 2


def test_everything_is_every_key_of_every_row() -> None:
    np.testing.assert_array_equal(everything(3, 5).allowed_TS(5), np.ones((3, 5), bool))
