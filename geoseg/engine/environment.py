"""What a cluster must have before work starts: the same programs as here, and workers with what a run needs."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from distributed import Client

from geoseg.engine.crew import places_for, shown_resources, workers_of
from geoseg.errors import ConfigError, RunError, one_line

if TYPE_CHECKING:
    from geoseg.engine.predict import Options

# By Dask's convention, what a worker is started with: --resources GPU=1.
GPU = "GPU"
# Plans and results are of no use to, or cannot be read by, other versions of these.
_ALIKE = ("geoseg", "python", "distributed", "torch")


def wanted_resources(options: Options) -> dict[str, float]:
    """Return what each chunk takes of a worker, as ``options.resource`` says it: ``NAME`` or ``NAME=AMOUNT``.

    Raises:
        ConfigError: it is no such text, or there is no cluster elsewhere.
    """
    if options.resource is None:
        return {}
    if not options.scheduler:
        raise ConfigError(
            f"--resource {options.resource} is about workers of a cluster elsewhere: give --scheduler too."
        )
    name, _, amount = options.resource.partition("=")
    try:
        number = float(amount or 1)
    except ValueError:
        number = 0.0
    if not name.strip() or not 0 < number < float("inf"):
        raise ConfigError(f"--resource {options.resource!r} is not NAME=AMOUNT, such as GPU=1.")
    return {name.strip(): number}


def resources_there(client: Client, wanted: dict[str, float], options: Options, where: str) -> dict[str, float]:
    """Return what each chunk takes of a worker: as ``wanted``; a GPU where networks are to run on one.

    Workers may yet come; so only a cluster that has some, none of them of use, is refused.

    Raises:
        RunError: no worker has it.
    """
    workers = workers_of(client)
    if not wanted and options.device.startswith("cuda") and any((w.get("resources") or {}).get(GPU) for w in workers):
        wanted = {GPU: 1.0}
    if wanted and workers and not places_for(client, wanted):
        told = ", ".join(
            sorted({f"{name}={has:g}" for w in workers for name, has in (w.get("resources") or {}).items()})
        )
        asked = " ".join(f"{name}={amount:g}" for name, amount in wanted.items())
        raise RunError(
            f"no worker of {where} has {shown_resources(wanted)} (they have {told or 'none'}): start workers with "
            f'--resources "{asked}", or ask for something else.'
        )
    return wanted


def refuse_other_versions(client: Client, where: str) -> None:
    """Refuse a cluster that does not have the versions of programs that are here.

    Raises:
        RunError: it has others, or has them not at all.
    """
    try:
        found: Any = client.get_versions(packages=[name for name in _ALIKE if name != "python"])
    except Exception as error:
        raise RunError(
            f"{where} does not say what it runs ({one_line(error)}): look whether it is well, then run the same "
            "command again."
        ) from error
    here = _packages(found["client"])
    for address, record in found["workers"].items():
        told = difference(_packages(record), here)
        if told:
            raise RunError(f"the worker {address} of {where} {told}")


def versions_here() -> dict[str, str | None]:
    """Return the versions of this process that others must have too."""
    return {name: _cut(name, _installed(name)) for name in _ALIKE}


def difference(there: Mapping[str, str | None], here: Mapping[str, str | None]) -> str | None:
    """Return how the programs of a worker differ from those of the client, as the rest of a sentence; None if not."""
    for name in _ALIKE:
        if there.get(name) != here.get(name):
            return (
                f"has {_shown(name, there)} and this side {_shown(name, here)}: install the same versions on both, see "
                "docs/cluster.md."
            )
    return None


@cache
def _installed(name: str) -> str | None:
    if name == "python":
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _packages(record: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the versions that matter, cut to what must be alike."""
    packages = dict(record["packages"])
    return {name: _cut(name, packages.get(name)) for name in _ALIKE}


def _cut(name: str, full: str | None) -> str | None:
    """Return the part of a version that must be alike: of Python 3.11, of torch without what it was built for."""
    if full is None:
        return None
    return ".".join(full.split(".")[:2]) if name == "python" else full.partition("+")[0]


def _shown(name: str, packages: Mapping[str, str | None]) -> str:
    known = packages.get(name)
    return f"no {name}" if known is None else f"{name} {known}"
