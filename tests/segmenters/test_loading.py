"""Where a model comes from: a path, a URL, a name; and what is never opened."""

import http.server
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from geoseg.bundle import write_bundle
from geoseg.cache import cache_folder
from geoseg.classes import Classes
from geoseg.errors import BundleError
from geoseg.segmenters.loading import load, resolve_bundle
from geoseg.segmenters.network import PlainNetwork, new_bundle

CLASSES = Classes.parse("background,road")


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "site" / "model.safetensors"
    path.parent.mkdir()
    write_bundle(path, *new_bundle("plainconv", bands=["red"], classes=CLASSES))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("GEOSEG_CACHE", str(folder))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def server(bundle):
    """A real HTTP server over the bundle's folder; it counts requests and can cut its answers short."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        asked: list[str] = []  # noqa: RUF012 - one handler class a server
        cut = 0

        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(bundle.parent), **kwargs)

        def log_message(self, *args):
            pass

        def do_GET(self):
            self.asked.append(self.path)
            if not self.cut:
                return super().do_GET()
            data = bundle.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: -self.cut])
            return None

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", Handler
        finally:
            running.shutdown()
            thread.join()


def _files(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir()) if folder.exists() else []


def test_a_path_gives_its_network(bundle):
    segmenter = load(bundle)
    assert isinstance(segmenter, PlainNetwork)
    assert segmenter.spec.bands == ("red",)
    assert resolve_bundle(bundle) == str(bundle)


def test_a_url_is_fetched_once(server, cache):
    address, handler = server
    url = f"{address}/model.safetensors"
    first = load(url)
    assert len(_files(cache)) == 1
    again = load(url)
    assert handler.asked == ["/model.safetensors"]
    for key, value in first.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[key])
    load(f"{url}?version=2")
    assert len(handler.asked) == len(_files(cache)) == 2


def test_a_url_that_gives_nothing_is_one_sentence(server, cache):
    address, _ = server
    with pytest.raises(BundleError, match=r"gone\.safetensors cannot be downloaded \(HTTP Error 404"):
        load(f"{address}/gone.safetensors?token=secret")
    with pytest.raises(BundleError, match="check the address") as caught:
        load("http://someone:secret@127.0.0.1:1/m.safetensors?token=secret")
    assert "secret" not in str(caught.value)
    assert _files(cache) == []


def test_a_download_cut_short_leaves_nothing(server, cache):
    address, handler = server
    handler.cut = 100
    with pytest.raises(BundleError, match="cannot be downloaded"):
        load(f"{address}/model.safetensors")
    assert _files(cache) == []
    handler.cut = 0
    assert load(f"{address}/model.safetensors")


def test_a_page_that_is_no_bundle_is_not_kept(server, bundle, cache):
    address, _ = server
    (bundle.parent / "page.html").write_text("<html>not found</html>")
    with pytest.raises(BundleError, match=r"http://127\.0\.0\.1:\d+/page\.html is not a safetensors file"):
        load(f"{address}/page.html")
    assert _files(cache) == []


def test_a_cache_that_cannot_be_written_says_what_to_set(server, cache):
    address, _ = server
    cache.write_text("a file where the folder should be")
    with pytest.raises(BundleError, match="set GEOSEG_CACHE"):
        load(f"{address}/model.safetensors")


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch):
    monkeypatch.delenv("GEOSEG_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "geoseg"


def test_a_name_that_does_not_ship_says_what_to_do():
    with pytest.raises(BundleError, match=r"'roads'.*buildings.*geoseg init.*geoseg cluster"):
        load("roads")


def test_a_shipped_name_gives_its_bundle(bundle, monkeypatch, tmp_path):
    monkeypatch.setattr("geoseg.segmenters.loading.files", lambda package: bundle.parent)
    assert resolve_bundle("model") == str(bundle)
    with pytest.raises(BundleError, match="no shipped model named 'modle'; did you mean model"):
        resolve_bundle("modle")
    monkeypatch.chdir(tmp_path)
    Path("model").write_bytes(bundle.read_bytes())
    assert resolve_bundle("model") == "model"


def test_a_clustering_bundle_goes_to_its_own_method(tmp_path, monkeypatch):
    from geoseg.segmenters.clustering import FeatureClustering

    description, tensors = new_bundle("plainconv", bands=["red"], classes=CLASSES)
    path = tmp_path / "c.safetensors"
    write_bundle(path, description.model_copy(update={"method": "feature-clustering"}), tensors)
    monkeypatch.setattr(FeatureClustering, "from_bundle", lambda bundle: ("clustering", bundle.path))
    assert load(path) == ("clustering", str(path))


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(BundleError, match=r"nowhere\.safetensors does not exist"):
        load(tmp_path / "nowhere.safetensors")


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("save", [lambda bomb, f: pickle.dump(bomb, f), lambda bomb, f: torch.save(bomb, f)])
def test_a_pickle_is_never_opened(tmp_path, save):
    mark = tmp_path / "ran"
    with open(tmp_path / "model.pt", "wb") as file:
        save(_Bomb(mark), file)
    with pytest.raises(BundleError, match="is a pickle"):
        load(tmp_path / "model.pt")
    assert not mark.exists()


def test_finding_a_bundle_imports_no_torch(bundle):
    code = (
        "import sys; from geoseg.segmenters.loading import resolve_bundle; resolve_bundle(sys.argv[1]);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
