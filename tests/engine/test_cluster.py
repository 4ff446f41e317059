"""Clusters elsewhere, as their users start them: by Dask's command line, with certificates, resources and files."""

from __future__ import annotations

import contextlib
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import dask
import distributed  # noqa: F401 - brings its settings; they must be there before a test changes some for a while
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import geoseg
from geoseg.errors import RunError

Processes = list[subprocess.Popen[bytes]]
pytestmark = [pytest.mark.dist, pytest.mark.slow]


@dataclass(frozen=True)
class Certificates:
    """Files of an authority and of one key that it vouches for."""

    authority: Path
    certificate: Path
    key: Path

    @property
    def options(self) -> list[str]:
        """The options of Dask's commands that name them."""
        return [
            *("--tls-ca-file", str(self.authority), "--tls-cert", str(self.certificate)),
            *("--tls-key", str(self.key)),
        ]

    @property
    def settings(self) -> dict[str, object]:
        """The settings of a client that name them."""
        return {
            "distributed.comm.tls.ca-file": str(self.authority),
            "distributed.comm.tls.client.cert": str(self.certificate),
            "distributed.comm.tls.client.key": str(self.key),
            "distributed.comm.require-encryption": True,
        }


def _certified(folder: Path, name: str) -> Certificates:
    """Write an authority and a certificate for the loopback."""
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {what}")]) for what in ("authority", "node")]
    made = []
    for own, key in zip(names, keys, strict=True):
        builder = (
            x509.CertificateBuilder()
            .subject_name(own)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=own is names[0], path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        )
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    secret = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths = [folder / f"{name}-{what}.pem" for what in ("ca", "node", "key")]
    for path, content in zip(paths, (*made, secret), strict=True):
        path.write_bytes(content)
    return Certificates(*paths)


@contextlib.contextmanager
def _started(
    folder: Path, *options: str, worker: tuple[str, ...] = ()
) -> Iterator[tuple[Path, list[subprocess.Popen[bytes]]]]:
    """Start a scheduler and a worker by Dask's command line; yields the scheduler file and both processes."""
    file = folder / "scheduler.json"
    dask_command = (sys.executable, "-m", "dask")
    processes = []
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        processes.append(
            subprocess.Popen(
                [
                    *(*dask_command, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
                    *("--scheduler-file", str(file), *options),
                ],
                cwd=folder,
                **quiet,
            )
        )
        deadline = time.monotonic() + 120
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        more = ("--nthreads", "1", "--memory-limit", "0", "--no-dashboard", "--no-nanny")
        command = [*dask_command, "worker", "--scheduler-file", str(file), *more, *options, *worker]
        command = [word for word in command if word not in {"--protocol", "tls"}]
        processes.append(subprocess.Popen(command, cwd=folder, **quiet))
        yield file, processes
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Certificates, Path]]:
    """A cluster with TLS, its address, its certificates, and the folder of these."""
    folder = tmp_path_factory.mktemp("secured")
    known = _certified(folder, "known")
    with _started(folder, "--protocol", "tls", *known.options, worker=("--resources", "GPU=1")) as (file, _):
        yield json.loads(file.read_text())["address"], known, folder


def test_scenes_go_through_a_cluster_with_certificates_and_resources(
    secured: tuple[str, Certificates, Path], tmp_path: Path, town: Path, plain: Path
) -> None:
    address, known, _ = secured
    assert address.startswith("tls://127.0.0.1:")
    with dask.config.set(known.settings):
        report = geoseg.batch([town], tmp_path / "out", plain, suffix=".tif", scheduler=address, resource="GPU=1")
        assert [scene["status"] for scene in report.scenes] == ["done"]
        with pytest.raises(RunError, match=r"no worker of .* has the resource TPU=1 \(they have GPU=1\)"):
            geoseg.predict(town, tmp_path / "a.tif", plain, scheduler=address, resource="TPU=1")
    geoseg.predict(town, tmp_path / "here.tif", plain)
    assert (tmp_path / "out" / "town" / "town.tif").read_bytes() == (tmp_path / "here.tif").read_bytes()


def test_a_client_without_a_certificate_or_with_a_strange_one_is_refused(
    secured: tuple[str, Certificates, Path], tmp_path: Path, town: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geoseg.engine.cluster._REACH_TIMEOUT", 3)
    address, _, folder = secured
    strange = _certified(folder, "strange")
    for settings in ({}, strange.settings):
        with dask.config.set(settings), pytest.raises(RunError, match=f"{address} cannot be reached.*certificates"):
            geoseg.predict(town, tmp_path / "out.tif", plain, scheduler=address)
    with pytest.raises(RunError, match="cannot be reached"):
        geoseg.predict(town, tmp_path / "out.tif", plain, scheduler=address.replace("tls", "tcp"))
    assert not (tmp_path / "out.tif").exists()


def test_a_scheduler_file_is_enough(tmp_path: Path, town: Path, plain: Path) -> None:
    with _started(tmp_path) as (file, _):
        report = geoseg.predict(town, tmp_path / "out.tif", plain, scheduler=str(file), chunk=256)
    assert report.tiles > 0


def test_a_scheduler_that_goes_away_ends_the_run_and_the_chunks_are_kept(
    tmp_path: Path, town: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geoseg.engine.lots._LOOK_S", 0.5)
    with _started(tmp_path) as (file, (scheduler, _)):

        def end_it(stage: str, done: int, total: int) -> None:
            if stage == "segmenting" and done == 1:
                scheduler.kill()

        with pytest.raises(RunError, match=r"(was lost|no Dask worker|cannot|could not).*run the same command again"):
            geoseg.predict(
                town, tmp_path / "out.tif", plain, scheduler=str(file), chunk=128, patience=5, progress=end_it
            )
    report = geoseg.predict(town, tmp_path / "out.tif", plain, chunk=128)
    assert report.resumed > 0


@pytest.mark.parametrize("text", ['{"address": 3}', "{}", "no json", "[]"])
def test_a_strange_scheduler_file_is_told(
    tmp_path: Path, town: Path, plain: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr("geoseg.engine.cluster._REACH_TIMEOUT", 2)
    (tmp_path / "strange.json").write_text(text)
    with pytest.raises(RunError, match=r"strange\.json cannot be reached"):
        geoseg.predict(town, tmp_path / "out.tif", plain, scheduler=str(tmp_path / "strange.json"))
