"""``geoseg import`` as a user types it: from a file of weights, or an ONNX file, to labels on a map."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from geoseg import networks
from geoseg.bundle import read_bundle
from geoseg.segmenters.loading import load
from geoseg.segmenters.network import PlainNetwork
from geoseg_cli.main import main


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(capsys):
    """Return a function that runs a command and returns its exit code, output and errors."""

    def go(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return go


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(4)
    return networks.create("plainconv", in_channels=3, num_classes=3).eval()


@pytest.fixture
def weights(tmp_path, network):
    path = tmp_path / "last.ckpt"
    state = {f"model.{name}": value for name, value in network.network.state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(3)}}, path)
    return path


@pytest.fixture(scope="module")
def scene(piece):
    """A part of the real sample scene, 260 × 340 pixels."""
    return piece(260, 340, row=600, col=400)


def _labels(path):
    with rasterio.open(path) as file:
        return file.read(1)


def _whole(network, scene, offset, scale):
    """Return the labels of one pass over the scene."""
    with rasterio.open(scene) as file:
        pixels = torch.from_numpy(file.read()[None].astype(np.float32))
    with torch.no_grad():
        scores = network((pixels - torch.tensor(offset).view(1, 3, 1, 1)) / torch.tensor(scale).view(1, 3, 1, 1))
    return scores.argmax(1)[0].numpy()


def test_weights_become_a_bundle_that_maps_as_the_network_does(run, weights, scene, network, tmp_path):
    model = tmp_path / "model.safetensors"
    code, out, err = run(
        "import", weights, "-o", model, "--network", "plainconv", "--classes", "background,road,roof:#d55e00",
        "--normalisation", "imagenet", "--tile", "128", "--licence", "MIT",
    )  # fmt: skip
    assert (code, out) == (0, f"{model}\n")
    assert "8 tensors taken behind 'model.'" in err
    assert "1 left out, which inference does not need: criterion.weight." in err
    description = read_bundle(model).description
    assert (description.halo, description.tile, description.tile_exact) == (3, 128, True)
    assert [record.color for record in description.classes][2] == "#d55e00"
    assert isinstance(load(model), PlainNetwork)
    assert run("predict", scene, tmp_path / "labels.tif", "-m", model, "-q")[0] == 0
    expected = _whole(network, scene, description.normalisation.offset, description.normalisation.scale)
    labels = _labels(tmp_path / "labels.tif")
    assert len(np.unique(expected)) > 1
    # Scenes are mirrored at their edge, where the network alone pads with zeros.
    inner = (slice(3, -3), slice(3, -3))
    assert (labels[inner] == expected[inner]).mean() > 0.9999


@pytest.fixture
def exported(tmp_path, network):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    torch.onnx.export(network.network, (torch.zeros(1, 3, 128, 128),), path, dynamo=False, input_names=["input"])
    model = onnx.load(path)
    entry = model.metadata_props.add()
    entry.key, entry.value = "class_names", json.dumps({0: "background", 1: "road", 2: "roof"})
    onnx.save(model, path)
    return path


def test_an_onnx_file_maps_with_and_without_an_import(run, exported, scene, network, tmp_path):
    model = tmp_path / "model.safetensors"
    assert run("import", exported, "-o", model)[:2] == (0, f"{model}\n")
    assert run("predict", scene, tmp_path / "imported.tif", "-m", model, "-q")[0] == 0
    assert run("predict", scene, tmp_path / "direct.tif", "-m", exported, "-q")[0] == 0
    labels = _labels(tmp_path / "imported.tif")
    assert np.array_equal(labels, _labels(tmp_path / "direct.tif"))
    expected = _whole(network, scene, [0.0] * 3, [255.0] * 3)
    inner = (slice(3, -3), slice(3, -3))
    assert (labels[inner] == expected[inner]).mean() > 0.9999
    said = json.loads(run("info", model, "--json")[1])
    assert (said["method"], said["settings"]) == ("onnx", {"answer": "logits", "threshold": 0.5})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "say with --network which of"),
        (("--network", "plainconv"), 2, "does not name its classes"),
        (("--network", "plainconv", "--classes", "a,b"), 1, "of another shape"),
        (("--network", "unet", "--classes", "a,b,c"), 1, "does not fit: it lacks"),
        (("--network", "nothing", "--classes", "a,b,c"), 2, "no network named 'nothing'"),
        (("--network", "plainconv", "--classes", "a,b,c", "--mean", "0.1,0.2,0.3"), 2, "mean and std go together"),
        (("--network", "plainconv", "--classes", "a,b,c", "--mean", "x"), 2, "'x' is not a list of numbers"),
        (("--network", "plainconv", "--classes", "a,b,c", "--answer", "logits"), 2, "--answer is for ONNX"),
        (("--network", "plainconv", "--classes", "a,b,c", "--halo", "wide"), 2, "neither a number of pixels nor"),
    ],
)
def test_one_sentence_says_what_is_wrong(run, weights, tmp_path, arguments, code, message):
    model = tmp_path / "model.safetensors"
    found, out, err = run("import", weights, "-o", model, *arguments)
    assert (found, out) == (code, "")
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert not model.exists()


def test_an_onnx_file_takes_no_network_and_needs_names(run, exported, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = tmp_path / "model.safetensors"
    code, _, err = run("import", exported, "-o", model, "--network", "unet")
    assert (code, "is a whole model" in err) == (2, True)
    bare = onnx.load(exported)
    del bare.metadata_props[:]
    onnx.save(bare, exported)
    code, _, err = run("predict", "nowhere.tif", tmp_path / "out.tif", "-m", exported)
    assert (code, "does not name its 3 classes: make a bundle of it with `geoseg import`" in err) == (2, True)
    assert run("import", exported, "-o", model, "--classes", "a,b,c")[0] == 0
    assert [record.name for record in read_bundle(model).description.classes] == ["a", "b", "c"]


def test_an_existing_model_is_kept(run, weights, tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"precious")
    code, _, err = run("import", weights, "-o", model, "--network", "plainconv", "--classes", "a,b,c")
    assert (code, model.read_bytes()) == (1, b"precious")
    assert "--overwrite" in err
    assert run("import", weights, "-o", model, "--network", "plainconv", "--classes", "a,b,c", "--overwrite")[0] == 0
    assert Path(model).stat().st_size > 100
