"""Writing beside and renaming: a file under its final name is always whole, and a failed write leaves nothing.

An output is made in a hidden folder next to its place, under its own name, together with what belongs beside it (a
style, a PAM file).  At the end the files are renamed into place, the output itself last.  What goes to object storage
is made in the folder for temporary files, and put in the same order.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from geoseg.errors import GeosegError, OutputError, one_line
from geoseg.places import Place, S3Place, as_place, place_of

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_TEXT = re.compile(r"no space left|(disk|database) (or disk )?is full|disk full|quota exceeded|SQLITE_FULL", re.I)
# What libtiff says when a write falls short; GDAL's errors do not carry the reason any more.
_CUT_SHORT = re.compile(r"write error|TIFFAppendToStrip|WriteEncoded(Tile|Strip)|TIFFFlush", re.I)
# Less than this is as good as nothing: GDAL does not always say why a write failed.
_NO_SPACE_BYTES = 64 * 1024
# Journals that SQLite keeps beside a GeoPackage, and GDAL's notes: they describe the file that is being replaced.
_STALE = ("-wal", "-shm", "-journal", ".aux.xml")


def check_place(path: str | os.PathLike[str] | S3Place, overwrite: bool) -> None:
    """Refuse a place where ``path`` could not be written, before work starts.

    Raises:
        OutputError: the file exists and ``overwrite`` is False, its folder or bucket is missing or not writable, or it
            is an address and not yet a place: what is written there goes to a folder only.
    """
    if isinstance(path, S3Place):
        from geoseg.outputs.uploading import check_object

        check_object(path, overwrite)
        return
    path = place_of(path)
    if isinstance(path, S3Place):
        raise OutputError(f"{path} is in object storage, where this is not written to: give a path, and copy the file.")
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the output a file name.")
    if not folder.is_dir():
        raise OutputError(f"the folder {folder} of the output {path.name} does not exist: create it first.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already: choose another name or pass --overwrite.")
    try:
        os.rmdir(_hidden_folder(path))
    except OSError as error:
        raise _explained(error, path) from error


@contextmanager
def staged(path: str | os.PathLike[str] | S3Place) -> Iterator[Path]:
    """Yield a temporary path of the same name; what lies in its folder is brought to the place of ``path`` at the end.

    When the block fails in any way, nothing is brought, an older file stays as it was, and the temporary folder goes.

    Raises:
        OutputError: the place is not writable, the disk is full, or object storage does not take the file.
    """
    path = as_place(path)
    with writing(path):
        folder = _hidden_folder(path)
    try:
        yield folder / path.name
        with writing(path):
            if isinstance(path, S3Place):
                from geoseg.outputs.uploading import upload

                upload(folder, path)
            else:
                _publish(folder, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writing(path: str | os.PathLike[str] | S3Place) -> Iterator[None]:
    """Turn what the system, GDAL, SQLite or Arrow say about a failed write inside the block into one sentence.

    Raises:
        OutputError: a write failed.
    """
    try:
        yield
    except GeosegError:
        raise
    except (OSError, RuntimeError, sqlite3.Error) as error:  # pyogrio's and pyarrow's errors are among these
        raise _explained(error, place_of(path)) from error
    except Exception as error:
        if not type(error).__module__.startswith(("rasterio", "pyogrio", "pyarrow")):
            raise
        raise _explained(error, place_of(path)) from error


def _hidden_folder(path: Place) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=_folder(path)))


def _folder(path: Place) -> Path:
    """Return the folder in which ``path`` is made."""
    return Path(tempfile.gettempdir()) if isinstance(path, S3Place) else path.parent


def _publish(folder: Path, path: Path) -> None:
    for ending in _STALE:
        path.with_name(path.name + ending).unlink(missing_ok=True)
    for name in sorted(os.listdir(folder)):
        if name != path.name:
            os.replace(folder / name, path.parent / name)
    os.replace(folder / path.name, path)


def _explained(error: BaseException, path: Place) -> OutputError:
    folder = _folder(path)
    if _is_full(error, folder):
        return OutputError(
            f"{path} could not be written because the disk is full: free some space in {folder.absolute()}, "
            "or write elsewhere."
        )
    if _CUT_SHORT.search(str(error)):
        return OutputError(
            f"{path} could not be written to its end ({one_line(error)}): the disk is probably full; free some space "
            f"in {folder.absolute()}, or write elsewhere."
        )
    if isinstance(error, PermissionError) or (
        isinstance(error, OSError) and error.errno in {errno.EROFS, errno.EACCES}
    ):
        return OutputError(
            f"{path} cannot be written: you may not write into {folder.absolute()}; choose another folder."
        )
    return OutputError(f"{path} could not be written ({one_line(error)}): check the folder and try again.")


def _is_full(error: BaseException, folder: Path) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in _FULL) or _FULL_TEXT.search(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    try:
        return shutil.disk_usage(folder).free < _NO_SPACE_BYTES
    except OSError:
        return False
