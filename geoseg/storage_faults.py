"""What an S3 storage and the way to it say of a fault, as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from geoseg.errors import GeosegError, OutputError, one_line
from geoseg.places import S3Place

_NO_BUCKET = {"NoSuchBucket"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
_WRONG_KEYS = {
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"),
    *("ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException", "AuthFailure"),
}
_BUSY = {
    *("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504", "Throttling"),
    *("ThrottlingException", "RequestLimitExceeded", "BandwidthLimitExceeded", "429"),
}
_OTHER_REGION = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
# The last of an object that was to be replaced, and is not there.
_TAKEN = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey"}


class TakenError(OutputError):
    """The object is there although it was to be new, or is another one than was to be replaced."""


class UnansweredError(OutputError):
    """The storage did not answer, or was too busy to, also after further tries: it may later."""


@contextmanager
def storage_faults(place: S3Place) -> Iterator[None]:
    """Turn what boto3 raises inside the block into one sentence about ``place``.

    Raises:
        TakenError: a condition did not hold.
        UnansweredError: no answer.
        OutputError: another fault, or boto3 is not installed.
    """
    try:
        import boto3  # noqa: F401 - without it there is no client
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
        from botocore.exceptions import ConnectionError as NoConnectionError
    except ImportError as error:
        raise OutputError(f"{place} needs boto3, which is not installed: run `pip install geoseg[s3]`.") from error
    try:
        yield
    except GeosegError:
        raise
    except ClientError as error:
        raise _refused(error, place) from error
    except (HTTPClientError, NoConnectionError, IncompleteReadError) as error:
        raise UnansweredError(_silent(place, one_line(error))) from error
    except (BotoCoreError, ValueError) as error:
        raise OutputError(_unset(error, place)) from error


def code_of(error: Any) -> str:
    """Return the code of a ``ClientError``."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _refused(error: Any, place: S3Place) -> OutputError:
    code = code_of(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    said = str(error.response.get("Error", {}).get("Message") or code or status)
    told = f"{code}: {said}" if code and code not in said else said
    if code in _TAKEN:
        return TakenError(f"{place} exists already: choose another name or pass --overwrite.")
    if code in _NO_BUCKET:
        return OutputError(f"{place} cannot be reached because there is no bucket {place.bucket}: make it first.")
    if code in _WRONG_KEYS:
        return OutputError(f"{place} cannot be reached because the storage does not take these credentials ({told}).")
    if code in _DENIED:
        return OutputError(
            f"{place} cannot be reached because access is denied: these credentials need to list, read, put and delete "
            f"objects in the bucket {place.bucket}."
        )
    if code in _OTHER_REGION:
        return OutputError(
            f"{place} cannot be reached because its bucket is in another region ({told}): set AWS_DEFAULT_REGION."
        )
    if code in _BUSY or (isinstance(status, int) and status >= 500 and status != 501):
        return UnansweredError(_silent(place, told))
    return OutputError(f"{place} cannot be reached or written ({one_line(Exception(told))}): check bucket and storage.")


def _silent(place: S3Place, told: str) -> str:
    return (
        f"{place} cannot be reached because its storage does not answer ({told}): check the network and "
        "AWS_ENDPOINT_URL, and run the same command again."
    )


def _unset(error: Exception, place: S3Place) -> str:
    kind = type(error).__name__
    if "Credential" in kind or "Token" in kind or "SSO" in kind:
        return (
            f"{place} cannot be reached because no credentials were found ({one_line(error).rstrip('.')}): set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        )
    return f"{place} cannot be reached ({one_line(error).rstrip('.')}): check the AWS settings and the address."
