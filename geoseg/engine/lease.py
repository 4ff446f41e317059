"""A folder in S3 storage held for one process at a time: a lock object that is renewed while its holder lives.

Its age is what the storage's own clock says, so clocks that go wrong here or elsewhere do not matter.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from geoseg.errors import GeosegWarning, OutputError, RunError
from geoseg.object_storage import look, put
from geoseg.places import S3Place
from geoseg.storage_faults import TakenError

LOCK = "lock"
# A lock that was not renewed for so long is that of a process which is gone.
LEASE_S = 30.0
_RENEWED_EVERY_S = 5.0
_LOOKED_AT_EVERY_S = 1.0


@dataclass(frozen=True)
class _Seen:
    """A lock as it was found: its tag, who holds it, and for how many seconds nobody has renewed it."""

    tag: str
    holder: str
    age_s: float
    released: bool


class Lease:
    """A lock object that this process holds, and renews from a thread of its own."""

    def __init__(self, place: S3Place, way_out: str) -> None:
        self._place, self._way_out = place, way_out
        self._id = uuid.uuid4().hex
        self._holder = f"process {os.getpid()} on {socket.gethostname()}"
        self._tag = ""
        self._lost = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="geoseg-lease", daemon=True)

    def acquire(self) -> None:
        """Take the lock, once it is free; that of a process that was killed is free after :data:`LEASE_S` seconds.

        While it waits to see which it is, it says so in a warning.

        Raises:
            RunError: another process holds it.
            OutputError: the storage does not answer, or refuses.
        """
        first: _Seen | None = None
        deadline = time.monotonic() + 2 * LEASE_S
        while not self._taken(found := _found(self._place)):
            if first is None and found is not None:
                first = found
                warnings.warn(
                    f"{self._place.parent} is held by {found.holder}: waiting up to {LEASE_S:.0f} seconds to see "
                    "whether that run still lives.",
                    GeosegWarning,
                    stacklevel=2,
                )
            renewed = found is not None and first is not None and found.tag != first.tag
            if renewed or time.monotonic() > deadline:
                holder = "another process" if found is None else found.holder
                folder = self._place.parent
                raise RunError(f"{folder} is in use by {holder}: wait for that run to end, or {self._way_out}.")
            time.sleep(_LOOKED_AT_EVERY_S)
        self._refuse_deaf()
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lock is still held.

        Raises:
            RunError: another process took it over, for it was not renewed in time.
        """
        if self._lost.is_set():
            raise RunError(
                f"{self._place.parent} was taken over by another run, since this one did not reach its storage for "
                f"{LEASE_S:.0f} seconds: run the same command again."
            )

    def release(self) -> None:
        """Let go of the lock, unless it is gone, with all of its folder perhaps."""
        self._ended.set()
        self._thread.join()
        if not self._lost.is_set():
            with suppress(OutputError):  # it becomes free by itself
                put(self._place, self._record(released=True), match=self._tag)

    def _taken(self, found: _Seen | None) -> bool:
        """Take the lock if it is free as it was found; False where it is not, or somebody else was faster."""
        if found is not None and not found.released and found.age_s <= LEASE_S:
            return False
        match = None if found is None else found.tag
        try:
            self._tag = put(self._place, self._record(), new=found is None, match=match)
        except TakenError:
            return False
        return True

    def _refuse_deaf(self) -> None:
        """Refuse a storage that puts an object although the condition does not hold.

        Raises:
            OutputError: it does, so it would let two runs in at a time.
        """
        with suppress(TakenError):
            put(self._place, self._record(released=True), new=True)
            raise OutputError(
                f"{self._place.parent} cannot be held for one run, since its storage does not heed If-None-Match: give "
                "a path instead."
            )

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_EVERY_S):
            try:
                self._tag = put(self._place, self._record(), match=self._tag)
            except TakenError:
                self._lost.set()
                return
            except OutputError:
                continue  # it is ours as long as nobody took it over

    def _record(self, *, released: bool = False) -> bytes:
        # The number makes each object, and so its tag, another one.
        record = {"holder": self._holder, "id": self._id, "released": released, "number": uuid.uuid4().hex}
        return json.dumps(record).encode()


@contextmanager
def leased(folder: S3Place, way_out: str) -> Iterator[Lease]:
    """Hold a folder for one process at a time.

    Args:
        folder: what is held.
        way_out: what else its user can do than wait, for the message.

    Raises:
        RunError: another process holds it.
        OutputError: the storage does not answer, or refuses.
    """
    lease = Lease(folder / LOCK, way_out)
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


def _found(place: S3Place) -> _Seen | None:
    found = look(place)
    if found is None:
        return None
    data, answer = found
    record: dict[str, Any] = {}
    with suppress(ValueError, TypeError):  # not one of ours, or of another version: its age counts all the same
        record = dict(json.loads(data))
    now = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    # A storage that does not tell the time frees nothing by itself.
    age = 0.0 if now is None else parsedate_to_datetime(now).timestamp() - answer["LastModified"].timestamp()
    return _Seen(answer["ETag"], str(record.get("holder", "another process")), age, record.get("released") is True)
