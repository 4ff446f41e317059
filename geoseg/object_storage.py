"""Objects in S3 storage: put whole or not at all, read, listed and deleted."""

from __future__ import annotations

import contextlib
import mimetypes
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from geoseg.errors import OutputError
from geoseg.places import S3Place
from geoseg.storage_faults import code_of, storage_faults

# One put takes up to 5 GB; so large a file goes in parts, each tried again by itself.
_PARTS_FROM_BYTES = 64 << 20
_PART_BYTES = 16 << 20
_MOST_PARTS = 10_000
_UPLOADERS = 4
# The most that one request deletes.
_DELETED_AT_A_TIME = 1000
# Marks an object with the upload that made it: a request whose answer was lost is sent again, and then finds it there.
_UPLOAD = "geoseg-upload"
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_READY = threading.Lock()


def endpoint() -> str | None:
    """Return the URL of the storage where the environment names one: for boto3, else in GDAL's way."""
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    gdal = os.environ.get("AWS_S3_ENDPOINT")
    if given or not gdal:
        return given or None
    secure = os.environ.get("AWS_HTTPS", "YES").upper() not in {"NO", "FALSE", "OFF"}
    return gdal if "://" in gdal else f"{'https' if secure else 'http'}://{gdal}"


def gdal_settings() -> dict[str, str]:
    """Return what makes GDAL use the storage that boto3 is told to use, where only boto3 is told."""
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not given or "AWS_S3_ENDPOINT" in os.environ:
        return {}
    parts = urlsplit(given)
    return {
        "AWS_S3_ENDPOINT": f"{parts.netloc}{parts.path}".rstrip("/"),
        "AWS_HTTPS": "NO" if parts.scheme.lower() == "http" else "YES",
        "AWS_VIRTUAL_HOSTING": os.environ.get("AWS_VIRTUAL_HOSTING", "FALSE"),
    }


def exists(place: S3Place) -> bool:
    """Whether there is an object.

    Raises:
        OutputError: that cannot be told; there is no such bucket.
    """
    return _head(place) is not None


def read(place: S3Place) -> bytes | None:
    """Return what an object holds, None where there is none.

    Raises:
        OutputError: it cannot be read.
    """
    found = look(place)
    return None if found is None else found[0]


def look(place: S3Place) -> tuple[bytes, dict[str, Any]] | None:
    """Return what an object holds, and what the storage says of it; None where there is none.

    Raises:
        OutputError: it cannot be read.
    """
    with storage_faults(place):
        from botocore.exceptions import ClientError

        try:
            answer = _client(place).get_object(Bucket=place.bucket, Key=place.key)
            return answer["Body"].read(), answer
        except ClientError as error:
            if code_of(error) in _ABSENT:
                return None
            raise


def put(place: S3Place, data: bytes, *, new: bool = False, match: str | None = None) -> str:
    """Put an object, whole or not at all, and return its tag.

    Args:
        place: where.
        data: what it is to hold.
        new: only where there is none.
        match: only in place of the one with this tag.

    Raises:
        TakenError: there is one, or another one.
        OutputError: it cannot be put.
    """
    return _settled(place, lambda mark: _put(place, data, mark, new=new, match=match))


def put_file(place: S3Place, file: Path, *, new: bool = False) -> None:
    """Put a file, whole or not at all; a large one in parts, which are gone where that fails.

    Raises:
        TakenError: there is an object, and a ``new`` one was to be made.
        OutputError: it cannot be put.
        OSError: the file cannot be read.
    """
    if file.stat().st_size >= _PARTS_FROM_BYTES:
        _settled(place, lambda mark: _put_parts(place, file, mark, new=new))
        return
    with file.open("rb") as data:
        _settled(place, lambda mark: _put(place, data, mark, new=new))


def probe(place: S3Place) -> None:
    """Find out that an object could be put, without one being seen.

    Raises:
        OutputError: it could not.
    """
    with storage_faults(place):
        client = _client(place)
        name = {"Bucket": place.bucket, "Key": place.key}
        client.abort_multipart_upload(**name, UploadId=client.create_multipart_upload(**name)["UploadId"])


def names(folder: S3Place, prefix: str = "") -> Iterator[str]:
    """Yield the keys of all objects below a folder, as seen from there, those that begin with ``prefix``.

    Raises:
        OutputError: they cannot be listed.
    """
    with storage_faults(folder):
        start = f"{folder.key}/" if folder.key else ""
        pages = _client(folder).get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=folder.bucket, Prefix=start + prefix):
            yield from (item["Key"][len(start) :] for item in page.get("Contents", ()))


def delete(folder: S3Place, found: Iterable[str]) -> None:
    """Delete objects by their names as seen from a folder; those that are not there do not matter.

    Raises:
        OutputError: one cannot be deleted.
    """
    waiting = iter(found)
    while some := list(islice(waiting, _DELETED_AT_A_TIME)):
        with storage_faults(folder):
            objects = [{"Key": (folder / name).key} for name in some]
            answer = _client(folder).delete_objects(Bucket=folder.bucket, Delete={"Objects": objects, "Quiet": True})
        for fault in answer.get("Errors", ()):
            raise OutputError(f"s3://{folder.bucket}/{fault['Key']} cannot be deleted ({fault.get('Code')}).")


def _settled(place: S3Place, send: Any) -> str:
    """Return what ``send`` gives for a new mark, also where it seems to fail but an object with that mark is there."""
    mark = uuid.uuid4().hex
    try:
        with storage_faults(place):
            return str(send(mark))
    except OutputError:
        with contextlib.suppress(OutputError):  # the first fault is the one to be told
            head = _head(place)
            if head is not None and head.get("Metadata", {}).get(_UPLOAD) == mark:
                return str(head["ETag"])
        raise


def _put(place: S3Place, data: bytes | BinaryIO, mark: str, *, new: bool = False, match: str | None = None) -> str:
    answer = _client(place).put_object(
        Bucket=place.bucket, Key=place.key, Body=data, **_described(place, mark), **_condition(new, match)
    )
    return str(answer["ETag"])


def _put_parts(place: S3Place, file: Path, mark: str, *, new: bool) -> str:
    client = _client(place)
    size = file.stat().st_size
    step = max(_PART_BYTES, -(-size // _MOST_PARTS))
    upload = {"Bucket": place.bucket, "Key": place.key}
    upload["UploadId"] = client.create_multipart_upload(**upload, **_described(place, mark))["UploadId"]

    def send(start: int) -> dict[str, Any]:
        with file.open("rb") as source:
            source.seek(start)
            data = source.read(step)
        number = start // step + 1
        return {**client.upload_part(**upload, PartNumber=number, Body=data), "PartNumber": number}

    try:
        pool = ThreadPoolExecutor(_UPLOADERS, thread_name_prefix="geoseg-upload")
        try:
            answers = list(pool.map(send, range(0, size, step)))
        finally:
            pool.shutdown(cancel_futures=True)
        kept = ("ETag", "PartNumber", "ChecksumCRC32")
        parts = [{name: answer[name] for name in kept if name in answer} for answer in answers]
        answer = client.complete_multipart_upload(
            **upload, MultipartUpload={"Parts": parts}, **_condition(new, match=None)
        )
        return str(answer["ETag"])
    except BaseException:
        _abort(client, upload)
        raise


def _abort(client: Any, upload: dict[str, str]) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    # What made the upload fail is told; where this fails too, a rule of the bucket for unfinished uploads removes it.
    with contextlib.suppress(BotoCoreError, ClientError):
        client.abort_multipart_upload(**upload)


def _described(place: S3Place, mark: str) -> dict[str, Any]:
    kind = mimetypes.guess_type(place.name)[0] or "application/octet-stream"
    return {"Metadata": {_UPLOAD: mark}, "ContentType": kind}


def _condition(new: bool, match: str | None) -> dict[str, str]:
    if new:
        return {"IfNoneMatch": "*"}
    return {} if match is None else {"IfMatch": match}


def _head(place: S3Place) -> dict[str, Any] | None:
    """Return what the storage says of an object, None where there is none."""
    with storage_faults(place):
        from botocore.exceptions import ClientError

        client = _client(place)
        try:
            found: dict[str, Any] = client.head_object(Bucket=place.bucket, Key=place.key)
            return found
        except ClientError as error:
            if code_of(error) not in _ABSENT:
                raise
        # That answer has no body which would tell an absent object from an absent bucket.
        try:
            client.head_bucket(Bucket=place.bucket)
        except ClientError as error:
            if code_of(error) in {"404", "NoSuchBucket"}:
                error.response["Error"]["Code"] = "NoSuchBucket"
                raise
        return None


def _client(place: S3Place) -> Any:
    """Return the client of this process for the settings of its environment."""
    settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    with storage_faults(place), _READY:
        return _made(os.getpid(), endpoint(), settings)


@lru_cache(maxsize=4)
def _made(_process: int, url: str | None, _settings: tuple[tuple[str, str], ...]) -> Any:
    import boto3
    from botocore.config import Config

    more: dict[str, Any] = {}
    if "AWS_RETRY_MODE" not in os.environ:
        more["retries"] = {"mode": "standard", **({} if "AWS_MAX_ATTEMPTS" in os.environ else {"max_attempts": 5})}
    if url is not None:
        # Storages of one's own seldom have a name for each bucket.
        virtual = os.environ.get("AWS_VIRTUAL_HOSTING", "FALSE").upper() in {"TRUE", "YES", "ON"}
        more["s3"] = {"addressing_style": "virtual" if virtual else "path"}
    config = Config(connect_timeout=20, read_timeout=60, max_pool_connections=32, user_agent_extra="geoseg", **more)
    return boto3.session.Session().client("s3", endpoint_url=url, config=config)
