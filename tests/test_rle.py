"""Run lengths: the same text as pycocotools writes, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pg2ref.arrays import Array
from pg2ref.errors import InputError, ShapeError
from pg2ref.outputs.rle import decode_mask, encode_mask

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=23))


def blob() -> Array:
    """Runs long enough for counts of several characters, and negative differences."""
    mask_YX = np.zeros((701, 907), bool)
    mask_YX[100:613, 200:703] = True
    mask_YX[350:400, 300:400] = False
    return mask_YX


@given(MASKS)
def test_decoding_undoes_encoding(mask_YX: Array) -> None:
    assert (decode_mask(encode_mask(mask_YX)) == mask_YX).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pycocotools and NumPy 2
@given(MASKS)
def test_pycocotools_writes_the_same(mask_YX: Array) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    for mask in (mask_YX, blob()):
        theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode_mask(mask) == {"size": list(mask.shape), "counts": theirs["counts"].decode()}
        assert (coco.decode(encode_mask(mask)).astype(bool) == mask).all()


def test_known_text() -> None:
    """By hand: 2 rows, 3 columns, read down the columns as 0 1, 1 1, 0 0: runs 1, 3, 2."""
    assert encode_mask(np.array([[0, 1, 0], [1, 1, 0]], bool)) == {"size": [2, 3], "counts": "132"}
    assert encode_mask(np.ones((1, 1), bool)) == {"size": [1, 1], "counts": "01"}
    assert (decode_mask(encode_mask(blob())) == blob()).all()


@given(st.text(st.characters(max_codepoint=127), max_size=9))
def test_damaged_text_never_gives_a_wrong_size(counts: str) -> None:
    try:
        mask_YX = decode_mask({"size": [3, 4], "counts": counts})
    except InputError:
        return
    assert mask_YX.shape == (3, 4)


@pytest.mark.parametrize("counts", ["132", "13P", "13200", "1\x00", "ooooooooooooooo0", "2O7", "14é"])
def test_damage_is_refused(counts: str) -> None:
    with pytest.raises(InputError, match=r"expected|cut off"):
        decode_mask({"size": [2, 4], "counts": counts})


@pytest.mark.parametrize("mask", [np.zeros((2, 3)), np.zeros(4, bool), np.zeros((2, 3, 1), bool)])
def test_other_arrays_are_refused(mask: Array) -> None:
    with pytest.raises(ShapeError, match="expected a bool mask"):
        encode_mask(mask)
