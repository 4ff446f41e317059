"""Find a model by path, URL or name, and make the segmenter it holds.  Finding one imports no torch."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.error
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from geoseg import __version__
from geoseg.bundle import Bundle, file_digest, read_bundle, write_bundle
from geoseg.cache import cache_folder
from geoseg.errors import BundleError, OutputError, one_line, unknown_name
from geoseg.fetching import answer_of, without_secrets

if TYPE_CHECKING:
    from geoseg.segmenters.interface import Segmenter

_SUFFIX = ".safetensors"


def load(path: str | os.PathLike[str]) -> Segmenter:
    """Return the segmenter of a bundle: a path, an http(s) URL, or the name of one that ships with geoseg.

    Raises:
        BundleError: there is no such bundle, it is damaged, or this version cannot use it.
    """
    return segmenter_of(read_bundle(resolve_bundle(path)))


def segmenter_of(bundle: Bundle) -> Segmenter:
    """Return the segmenter that an opened bundle holds.

    Raises:
        BundleError: the bundle is damaged, or this version cannot use it.
    """
    if bundle.description.method in ("feature-clustering", "superpixel-backprop"):
        from geoseg.segmenters.clustering import FeatureClustering

        return FeatureClustering.from_bundle(bundle)
    if bundle.description.method == "active-contour":
        from geoseg.segmenters.active_contour import ActiveContour

        return ActiveContour.from_bundle(bundle)
    if bundle.description.method == "onnx":
        from geoseg.segmenters.onnx import OnnxNetwork

        return OnnxNetwork.from_bundle(bundle)
    if bundle.description.method == "global-local":
        from geoseg.segmenters.global_local import GlobalLocal

        return GlobalLocal.from_bundle(bundle)
    if bundle.description.method == "saliency":
        from geoseg.segmenters.saliency import SaliencyNetwork

        return SaliencyNetwork.from_bundle(bundle)
    if bundle.description.method == "refiner":
        raise BundleError(
            f"{bundle.path} holds a refiner, which segments nothing by itself: give a model that segments, or refine "
            "its labels with `geoseg refine`."
        )
    from geoseg.networks.scene_pooling import pools_over_scene
    from geoseg.segmenters.network import PlainNetwork

    plain = PlainNetwork.from_bundle(bundle)
    network: object = plain.module
    if not pools_over_scene(network):
        return plain
    from geoseg.segmenters.scene_pooling import ScenePooledNetwork

    return ScenePooledNetwork(plain.module, plain.spec)


def shipped() -> tuple[str, ...]:
    """Return the names of the bundles that come with the package."""
    folder = files("geoseg.data")
    return tuple(sorted(f.name.removesuffix(_SUFFIX) for f in folder.iterdir() if f.name.endswith(_SUFFIX)))


def resolve_bundle(path: str | os.PathLike[str]) -> str:
    """Return the local path of a bundle given by path, http(s) URL (downloaded once) or shipped name.

    A file of that name goes before a shipped bundle.  A path that does not exist comes back as it is:
    :func:`geoseg.bundle.read_bundle` says so.  Of an ONNX file whose metadata say enough a bundle is made, once.

    Raises:
        BundleError: no bundle of that name ships, the URL gives none, or an ONNX file is refused.
        ConfigError: an ONNX file does not say enough, or onnxruntime is not installed.
    """
    name = os.fspath(path)
    if name.lower().startswith(("http://", "https://")):
        return _downloaded(name)
    if os.path.exists(name) or not _is_name(name):
        return _of_onnx(name) if name.lower().endswith(".onnx") and os.path.isfile(name) else name
    known = shipped()
    if name in known:
        return str(files("geoseg.data") / f"{name}{_SUFFIX}")
    ways = (
        "give the path or URL of a bundle, make one with `geoseg init`, or segment without a model (`geoseg cluster`)"
    )
    raise BundleError(f"{unknown_name('shipped model', name, known)} Or {ways}.")


def _is_name(text: str) -> bool:
    """Whether ``text`` can only be a name: no folder and no suffix."""
    return bool(text) and os.path.basename(text) == text and not os.path.splitext(text)[1]


def _downloaded(url: str) -> str:
    """Return the cached copy of ``url``, fetching it first if there is none."""
    target = cache_folder() / (hashlib.sha256(url.encode()).hexdigest()[:32] + _SUFFIX)
    if target.exists():
        return str(target)
    shown = without_secrets(url)
    partial = ""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            _fetch(url, file)
        try:
            # What is kept is known to be a bundle: a page that says "not found" must not stay in the cache.
            read_bundle(partial)
        except BundleError as error:
            raise BundleError(str(error).replace(partial, shown)) from error
        os.replace(partial, target)
    except (OSError, ValueError) as error:
        if isinstance(error, BundleError):
            raise
        if isinstance(error, urllib.error.URLError | ConnectionError | TimeoutError | ValueError):
            raise BundleError(
                f"{shown} cannot be downloaded ({one_line(error)}): check the address, or download it yourself and "
                "give its path."
            ) from error
        raise BundleError(
            f"{shown} cannot be kept in {target.parent} ({one_line(error)}): set GEOSEG_CACHE to a folder with room."
        ) from error
    finally:
        if partial:
            Path(partial).unlink(missing_ok=True)
    return str(target)


def _of_onnx(path: str) -> str:
    """Return the cached bundle of an ONNX file, made first if there is none."""
    from geoseg.segmenters.onnx_import import import_onnx

    try:
        content = file_digest(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror or error}): check the path.") from error
    target = cache_folder() / f"onnx-{content[:32]}-{__version__}{_SUFFIX}"
    if not target.exists():
        made = import_onnx(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bundle(target, *made, overwrite=True)
        except (OSError, OutputError) as error:
            raise BundleError(
                f"{path} cannot be kept as a bundle in {target.parent} ({one_line(error)}): set GEOSEG_CACHE to a "
                "folder with room, or make the bundle with `geoseg import`."
            ) from error
    return str(target)


def _fetch(url: str, file: BinaryIO) -> None:
    """Copy what ``url`` gives into ``file``.

    Raises:
        OSError: no connection, an error status, or fewer bytes than announced.
    """
    with answer_of(url) as response:
        shutil.copyfileobj(response, file, 1 << 20)
        announced = response.headers.get("Content-Length")
    if announced is not None and file.tell() != int(announced):
        raise ConnectionError(f"the connection ended after {file.tell()} of {announced} bytes")
