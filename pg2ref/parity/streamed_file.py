"""A large file that is written from front to back while its author computes.

Numbers are copied into a few blocks of memory, and a thread writes full blocks. Where the system allows it they go past
its page cache: a trace may be larger than the memory, and in the cache it would take the place of the weights. Where
memory is dear, in a virtual machine that fetches pages from its host, filling the cache takes longer than the disk.
"""

import os
import time
from errno import EINVAL
from io import FileIO
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np

from pg2ref.arrays import Array

PAGE = 4096  # bytes: past the cache, places in the file and in memory and lengths are whole pages
BLOCK = 512 * PAGE
BLOCKS = 8  # one is filled, the others are written or wait
PATIENCE_S, PATIENCE_SHARE = 0.1, 0.1  # of the time, that may be lost to a disk before the cache is used after all
PAST_CACHE = getattr(os, "O_DIRECT", 0)  # Linux has it


class StreamedFile:
    """A new file of which all but the first `start` bytes, whole pages, are appended; those come in the end.

    It can be read at `path` as far as it was flushed. Every method raises the OSError of any earlier write.
    """

    def __init__(self, path: Path, start: int) -> None:
        self._place, self._filled = start, 0  # of the block that is being filled
        self._free: Queue[Array] = Queue()
        self._full: Queue[tuple[int, Array] | None] = Queue()
        room = np.empty(PAGE + BLOCKS * BLOCK, np.uint8)
        room = room[-room.ctypes.data % PAGE :]
        for number in range(BLOCKS):
            self._free.put(room[number * BLOCK : (number + 1) * BLOCK])
        self._block = self._free.get()
        self._opened, self._waited = time.monotonic(), 0.0
        self._error: Exception | None = None
        self._file, self._is_past_cache = open_past_cache(path)  # last: what fails before leaves no file
        self._thread = Thread(target=self._write_full, name="StreamedFile", daemon=True)
        self._thread.start()

    def append(self, array: Array) -> None:
        """Take a copy of the array's numbers, in row-major order."""
        rest = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        while rest.size:
            taken = min(rest.size, BLOCK - self._filled)
            self._block[self._filled : self._filled + taken] = rest[:taken]
            rest, self._filled = rest[taken:], self._filled + taken
            if self._filled == BLOCK:
                self._full.put((self._place, self._block))
                self._place, self._filled, self._block = self._place + BLOCK, 0, self._wait_for_block()
        self._check()

    def flush(self) -> None:
        """Hand everything to the system; behind the last byte a page may be filled up with others."""
        self._full.join()
        self._check()
        self._write(self._place, self._block[: -(-self._filled // PAGE) * PAGE])

    def finish(self, start: bytes) -> None:
        """Write what comes first, and nothing after it."""
        self.flush()
        self._use_cache()
        self._file.truncate(self._place + self._filled)
        self._write(0, np.frombuffer(start, np.uint8))

    def close(self) -> None:
        """Stop, whatever has become of it."""
        self._full.put(None)
        self._thread.join()
        self._file.close()

    def _wait_for_block(self) -> Array:
        asked = time.monotonic()
        block = self._free.get()
        now = time.monotonic()
        self._waited += now - asked
        if self._waited > PATIENCE_S + PATIENCE_SHARE * (now - self._opened):
            self._use_cache()
        return block

    def _write_full(self) -> None:
        """The thread's work. After an error blocks only go back, so that nobody waits for one."""
        while (work := self._full.get()) is not None:
            try:
                if self._error is None:
                    self._write(*work)
            except Exception as error:
                self._error = error
            self._free.put(work[1])
            self._full.task_done()

    def _write(self, place: int, block: Array) -> None:
        self._file.seek(place)
        rest = block.data
        while rest:
            went_past_cache = self._is_past_cache  # the other thread may give it up meanwhile
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                if error.errno != EINVAL or not went_past_cache:
                    raise
                self._use_cache()  # this disk has larger pages, or it wrote part of one

    def _use_cache(self) -> None:
        if self._is_past_cache:
            import fcntl  # Linux has it

            flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags & ~PAST_CACHE)
            self._is_past_cache = False  # afterwards: where it is so, the system refuses nothing any more

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


def open_past_cache(path: Path) -> tuple[FileIO, bool]:
    """A new file, and whether it is written past the page cache: not every file system can."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | PAST_CACHE, 0o666)

    try:
        return open(path, "w+b", buffering=0, opener=opener), PAST_CACHE != 0
    except OSError as error:
        if error.errno != EINVAL:
            raise
        return open(path, "w+b", buffering=0), False
