"""Memory of results that is used again: never while somebody still reads it."""

import threading

import numpy as np
import pytest

from pg2ref.kernels import results
from pg2ref.kernels.results import SMALLEST, Pool, empty, rounded_up

LARGE = (512, 1024)  # float32: 2 MB


def address(array):
    return array.ctypes.data


def test_memory_of_an_array_that_is_gone_is_used_again():
    pool = Pool()
    first = empty(LARGE, pool=pool)
    place = address(first)
    assert pool.held() == 0
    del first
    assert pool.held() == rounded_up(SMALLEST * 2)
    second = empty(LARGE, pool=pool)
    assert address(second) == place
    assert pool.held() == 0


def test_a_view_keeps_the_memory():
    pool = Pool()
    row = empty(LARGE, pool=pool).reshape(-1)[100:200]
    row[:] = 7
    other = empty(LARGE, pool=pool)
    other[:] = 0
    assert (row == 7).all()
    assert not np.shares_memory(row, other)


def test_arrays_are_as_numpys():
    array = empty((3, 700, 500), np.uint16)
    assert array.shape == (3, 700, 500)
    assert array.dtype == np.uint16
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.flags.aligned
    assert address(array) % 64 == 0
    array[:] = np.arange(500)
    assert (array[2, 699] == np.arange(500)).all()


def test_places_in_a_page_differ():
    pool = Pool()
    arrays = [empty(LARGE, pool=pool) for _ in range(64)]
    assert len({address(array) % 4096 for array in arrays}) > 32


def test_dimensions_may_be_numpys_own():
    assert empty((np.int64(1000), 1000)).shape == (1000, 1000)


def test_small_arrays_are_numpys():
    assert empty((10, 10)).base is None
    assert empty((0, 10)).shape == (0, 10)


def test_lengths_near_each_other_share_memory():
    pool = Pool()
    place = address(empty((266, 9216), pool=pool))
    assert address(empty((262, 9216), pool=pool)) == place


def test_no_more_is_held_than_may_be():
    pool = Pool(most_held=5 << 20)
    arrays = [empty(LARGE, pool=pool) for _ in range(8)]
    arrays.clear()
    assert 0 < pool.held() <= 5 << 20
    too_large = empty((2048, 1024), pool=pool)
    del too_large
    assert pool.held() <= 5 << 20


@pytest.mark.parametrize("size", [SMALLEST, SMALLEST + 1, 9_806_000, 38_117_376, (1 << 27) - 1])
def test_sizes_are_rounded_up_by_a_quarter_at_most(size):
    assert size <= rounded_up(size) <= size * 1.25
    assert rounded_up(rounded_up(size)) == rounded_up(size)


def test_threads_never_get_the_same_memory():
    pool, wrong = Pool(), []

    def work(number):
        for turn in range(200):
            mark = number * 1000 + turn
            array = empty(LARGE, np.int32, pool=pool)
            array[::64, 0] = mark
            other = empty(LARGE, np.int32, pool=pool)
            other[::64, 0] = -1
            if not (array[::64, 0] == mark).all():
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_results_of_kernels_are_not_written_again():
    """Two results of one shape that both live, and the pool between them."""
    from pg2ref.kernels.elementwise import gelu

    x = np.linspace(-3, 3, LARGE[0] * LARGE[1], dtype=np.float32).reshape(LARGE)
    first = gelu(x)
    kept = first.copy()
    second = gelu(-x)
    assert (first == kept).all()
    assert not np.shares_memory(first, second)
    assert isinstance(first.base, results.Lease)


def test_a_result_for_which_there_is_no_memory_leaves_no_half_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end has nothing to give back; pytest turns an exception there into a failure."""
    pool = Pool()

    def refuse(_size: int) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(pool, "make", refuse)
    with pytest.raises(MemoryError):
        empty((SMALLEST,), np.float32, pool)
    assert pool.held() == 0
