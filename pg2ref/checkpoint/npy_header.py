"""Reads the header of an .npy file, as the members of an .npz are: shape, order and type, and no number yet.

NumPy's own reader goes on to repair what it cannot parse (headers of Python 2), and leaves that by exceptions of a
tokenizer; nothing of the kind is wanted here.

The format (NumPy, "NEP 1", version 1.0): the bytes 0x93 `NUMPY`, version 1 0, two bytes with the header's length, and a
Python literal `{'descr': '<f4', 'fortran_order': False, 'shape': (128, 5), }`, in any order of its keys.
"""

import ast
from typing import IO, NamedTuple

from pg2ref.errors import CheckpointError, brief

START = b"\x93NUMPY\x01\x00"  # later versions are for headers of more than 64 kB
KEYS = {"descr", "fortran_order", "shape"}


class NpyHeader(NamedTuple):
    """What an array is. `descr` is NumPy's word for its type, `<f4` say, unchecked."""

    descr: str
    fortran_order: bool
    shape: tuple[int, ...]


def read_npy_header(stream: IO[bytes], at: str) -> NpyHeader:
    """Read to where the numbers begin; `at` says in messages which array this is.

    Raises:
        CheckpointError: it is another version, or not such a literal.
    """
    start = stream.read(len(START))
    if start != START:
        raise CheckpointError(f"{at}: expected an .npy member of version 1.0, got {brief(start)}; write it anew")
    length = int.from_bytes(stream.read(2), "little")
    text = stream.read(length)
    try:
        header = ast.literal_eval(text.decode("latin-1").strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):  # Python's parser gives up in many ways
        header = None
    if len(text) != length or not isinstance(header, dict) or header.keys() != KEYS:
        raise CheckpointError(f"{at}: expected an .npy header with descr, fortran_order and shape, got {brief(text)}")
    descr, fortran_order, shape = header["descr"], header["fortran_order"], header["shape"]
    is_shape = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
    if not isinstance(descr, str) or not isinstance(fortran_order, bool) or not is_shape:
        raise CheckpointError(f"{at}: expected a plain array, got {brief(header)}")
    return NpyHeader(descr, fortran_order, shape)
