"""How the threads of a network wait for each other."""

from __future__ import annotations

import os
import sys

# By default libgomp's threads spin some milliseconds; so many turns are some ten microseconds.
_TURNS = 10_000


def sleep_soon() -> bool:
    """Let threads that wait for each other inside torch sleep after a moment, not spin; returns whether they will.

    A thread whose neighbour has to wait for a core spins all that time, which takes the core from it.  Beside one other
    busy process, a small network over a scene of 4096² so took 8 s of wall time in place of 2 to 4, and on an idle
    machine a U-Net resnet18 took 4 % more CPU time; it was no slower for sleeping.
    Meant for processes of our own, before torch is imported: it is the library that reads the environment.  What the
    user has set there stays.
    """
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ:
        return False
    os.environ.setdefault("GOMP_SPINCOUNT", str(_TURNS))
    return True
