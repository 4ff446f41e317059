"""The memory allocator of a process that runs networks."""

from __future__ import annotations

import ctypes
import sys

# What glibc is told: by a variable of the environment where a process starts, or by an option of mallopt (malloc.h).
_SETTINGS = (
    ("MALLOC_ARENA_MAX", -8, 1),
    ("MALLOC_MMAP_THRESHOLD_", -3, 1 << 30),
    ("MALLOC_TRIM_THRESHOLD_", -1, 512 << 20),
)


def keep_freed_memory() -> bool:
    """Let this process keep up to 512 MB that it has freed; returns whether the allocator could be told.

    A network frees and takes the same large arrays tile after tile.  By default glibc gives each back to the system
    and faults every page in again: with a U-Net resnet18, 10 to 12 s of system time on a scene of 4096², and 1.5 to 3 s
    when told to keep it.
    Meant for processes of our own: the settings hold for all of the process.  It is to come before other threads do
    anything: what they have taken by then they go on taking from, and large arrays there are always given back.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return all(bool(mallopt(option, value)) for _, option, value in _SETTINGS)


def keeping_environment() -> dict[str, str]:
    """Return variables that let a process keep what it frees from its start on, see :func:`keep_freed_memory`."""
    return {name: str(value) for name, _, value in _SETTINGS} if sys.platform.startswith("linux") else {}
