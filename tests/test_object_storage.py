"""Objects on a real S3 server: put whole or not at all, on conditions, and what is said when that fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import geoseg
from geoseg.errors import OutputError
from geoseg.object_storage import delete, exists, look, names, probe, put, put_file, read
from geoseg.places import S3Place
from geoseg.storage_faults import TakenError, UnansweredError
from tests.conftest import Storage, start_s3_server
from tests.s3_proxy import Proxy, proxied


@pytest.fixture
def proxy(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A server that fails as it is told to, in front of that of ``storage``."""
    with proxied(storage.url) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


def test_objects_are_put_on_conditions(storage: Storage) -> None:
    place = S3Place(storage.bucket, "a/b.json")
    assert read(place) is None
    assert look(place) is None
    assert not exists(place)
    tag = put(place, b"one", new=True)
    assert read(place) == b"one"
    with pytest.raises(TakenError, match=rf"^{place} exists already"):
        put(place, b"two", new=True)
    later = put(place, b"two", match=tag)
    with pytest.raises(TakenError):
        put(place, b"three", match=tag)
    assert read(place) == b"two"
    assert later != tag
    with pytest.raises(TakenError):
        put(S3Place(storage.bucket, "not there"), b"three", match=tag)
    found = look(place)
    assert found is not None
    assert found[1]["ContentType"] == "application/json"


def test_objects_are_listed_and_deleted_below_a_folder(storage: Storage) -> None:
    folder = S3Place(storage.bucket, "a")
    for key in ("a/one", "a/two/three", "a/r1/x", "ab", "b/one"):
        storage.put(key, b"")
    assert list(names(folder)) == ["one", "r1/x", "two/three"]
    assert list(names(folder, "r")) == ["r1/x"]
    assert list(names(S3Place(storage.bucket, ""))) == ["a/one", "a/r1/x", "a/two/three", "ab", "b/one"]
    delete(folder, ["two/three", "never there"])
    delete(folder, [])
    assert storage.names() == ["a/one", "a/r1/x", "ab", "b/one"]


def test_a_probe_leaves_nothing(storage: Storage) -> None:
    probe(S3Place(storage.bucket, "a/b"))
    assert storage.names() == []
    assert storage.unfinished() == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that goes in five parts."""
    path = tmp_path_factory.mktemp("large") / "large.bin"
    path.write_bytes(os.urandom(1 << 20) * 65)
    return path


@pytest.mark.slow
def test_a_large_file_goes_in_parts(storage: Storage, large: Path) -> None:
    place = S3Place(storage.bucket, "large.bin")
    put_file(place, large, new=True)
    assert storage.client.head_object(Bucket=storage.bucket, Key="large.bin")["ETag"].endswith('-5"')
    assert storage.get("large.bin") == large.read_bytes()
    with pytest.raises(TakenError):
        put_file(place, large, new=True)
    assert storage.unfinished() == 0


def test_a_part_that_fails_leaves_the_old_object_and_no_parts(storage: Storage, proxy: Proxy, large: Path) -> None:
    storage.put("large.bin", b"old")
    proxy.fault = lambda method, path: "busy" if "partNumber=4" in path else None
    with pytest.raises(UnansweredError, match="does not answer"):
        put_file(S3Place(storage.bucket, "large.bin"), large)
    assert storage.get("large.bin") == b"old"
    assert storage.unfinished() == 0


def test_an_answer_that_is_lost_is_no_object_of_somebody_else(storage: Storage, proxy: Proxy) -> None:
    puts = iter(["mute", None])
    proxy.fault = lambda method, path: next(puts) if method == "PUT" else None
    put(S3Place(storage.bucket, "a"), b"one", new=True)
    assert storage.get("a") == b"one"
    assert [method for method, _ in proxy.asked] == ["PUT", "PUT", "HEAD"]


@pytest.mark.parametrize("fault", ["busy", "drop"])
def test_a_storage_that_fails_once_is_asked_again(storage: Storage, proxy: Proxy, fault: str) -> None:
    faults = iter([fault, None, fault, None])
    proxy.fault = lambda method, path: next(faults)
    put(S3Place(storage.bucket, "a"), b"one")
    assert read(S3Place(storage.bucket, "a")) == b"one"


@pytest.mark.parametrize("fault", ["busy", "drop"])
def test_a_storage_that_fails_for_ever_is_one_sentence(storage: Storage, proxy: Proxy, fault: str) -> None:
    proxy.fault = lambda method, path: fault
    with pytest.raises(UnansweredError, match=r"^s3://.*/a cannot be reached because its storage does not") as caught:
        put(S3Place(storage.bucket, "a"), b"one")
    assert "\n" not in str(caught.value)


def test_no_such_bucket_is_told_at_once(storage: Storage) -> None:
    place = S3Place("no-such-bucket", "a")
    for call in (lambda: exists(place), lambda: put(place, b""), lambda: read(place), lambda: list(names(place))):
        with pytest.raises(OutputError, match="there is no bucket no-such-bucket: make it first"):
            call()


def test_no_credentials_are_told(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(OutputError, match=r"no credentials were found.*AWS_ACCESS_KEY_ID.*AWS_PROFILE"):
        exists(S3Place(storage.bucket, "a"))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "does not answer"),
        ("AWS_ENDPOINT_URL", "nonsense", "check the AWS settings"),
        ("AWS_PROFILE", "nobody", "nobody.*check the AWS settings"),
    ],
)
def test_wrong_settings_are_one_sentence(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(OutputError, match=told) as caught:
        exists(S3Place(storage.bucket, "a"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_wrong_keys_and_denied_access_are_told(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    server = start_s3_server(INITIAL_NO_AUTH_ACTION_COUNT="4")  # the four requests of this setting up
    try:
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        boto3.client("s3", endpoint_url=url).create_bucket(Bucket="closed")
        iam = boto3.client("iam", endpoint_url=url)
        iam.create_user(UserName="reader")
        keys = iam.create_access_key(UserName="reader")["AccessKey"]
        policy = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:Get*","Resource":"*"}]}'
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(OutputError, match="does not take these credentials"):
            put(S3Place("closed", "a"), b"")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
        with pytest.raises(OutputError, match="access is denied: these credentials need to list, read, put and delete"):
            put(S3Place("closed", "a"), b"")
    finally:
        server.stdin.close()
        server.wait(timeout=30)


def test_one_setting_serves_scenes_too(storage: Storage, town: Path) -> None:
    storage.put("scenes/town.tif", town.read_bytes())
    scene = geoseg.open(storage / "scenes/town.tif")
    assert scene.geobox == geoseg.open(town).geobox
    assert scene.read(scene.window).valid.any()
