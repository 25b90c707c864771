"""What the machine has: memory, threads, processor. Linux says all of it, other systems a part."""

import os
import sys
from pathlib import Path
from typing import NamedTuple

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Bytes; None where the system does not say. A container's limit counts, not what lies outside of it."""

    total: int | None
    available: int | None  # for new programs without swapping: what is free, and caches that can be given up
    limited_by: str  # "machine", or "container"


def read_memory(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> Memory:
    """Memory of the machine, or of the container where that is less."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        total, available = (int(lines[name].split()[0]) << 10 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return Memory(_pages(), None, "machine")
    limit, used = _container(cgroup)
    if limit is None or limit >= total:
        return Memory(total, available, "machine")
    return Memory(limit, max(0, min(available, limit - used)), "container")


def _pages() -> int | None:
    """Total memory of a POSIX system without /proc."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _container(cgroup: Path) -> tuple[int | None, int]:
    """Its limit, and what of it is in use and cannot be given back (Linux, control groups 2 and 1)."""
    for limit_name, used_name, stat_name in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            limit, used = int((cgroup / limit_name).read_text()), int((cgroup / used_name).read_text())
            stat = dict(line.split() for line in (cgroup / stat_name).read_text().splitlines())
            return limit, used - int(stat.get("inactive_file", 0)) - int(stat.get("active_file", 0))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None, 0


def usable_cpus() -> int:
    """Processors that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
