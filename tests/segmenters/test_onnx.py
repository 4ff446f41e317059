"""ONNX models: the scores of the module they were exported from, what their metadata say, and what is refused."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

import geoseg
from geoseg.bundle import read_bundle, write_bundle
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError, GeosegWarning
from geoseg.grid import Window
from geoseg.normalisation import Normalisation
from geoseg.segmenters.interface import Spec, State, Tiles, normalised
from geoseg.segmenters.loading import load, resolve_bundle
from geoseg.segmenters.network import PlainNetwork
from geoseg.segmenters.onnx import OnnxNetwork
from geoseg.segmenters.onnx_import import import_onnx
from geoseg.segmenters.scaling import Scaling

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CPU = torch.device("cpu")
CLASSES = Classes.parse("background,road,roof")
NAMES = {0: "_background", 1: "road", 2: "roof"}
SCALING = Normalisation((100.0, 90.0, 80.0), (50.0, 40.0, 30.0))


class Net(nn.Module):
    """Two convolutions of reach 4 in all, then what the test asks for."""

    def __init__(self, classes=3, end=None, last=False, stride=1):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, classes, 5, padding=2, stride=stride)
        )
        self.end = end or nn.Identity()
        self.last = last

    def forward(self, pixels):
        if self.last:
            return self.end(self.body(pixels.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.end(self.body(pixels))


def _net(**options):
    torch.manual_seed(0)
    return Net(**options).eval()


def _export(path, module, side=64, *, dynamic=False, metadata=None, batch=1):
    """Write a module as ONNX, with metadata in JSON as GeoDeep and Deepness read them."""
    shape = (batch, side, side, 3) if getattr(module, "last", False) else (batch, 3, side, side)
    axes = {0: "n", 1: "h", 2: "w"} if getattr(module, "last", False) else {0: "n", 2: "h", 3: "w"}
    torch.onnx.export(
        module,
        (torch.zeros(shape),),
        path,
        dynamo=False,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": axes, "output": axes} if dynamic else None,
    )
    if metadata:
        model = onnx.load(path)
        for key, value in metadata.items():
            entry = model.metadata_props.add()
            entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
        onnx.save(model, path)
    return path


def _tiles(count=2, side=64, seed=0):
    pixels = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed))
    valid = torch.ones(count, side, side, dtype=torch.bool)
    valid[0, :5] = False
    return Tiles(pixels.to(torch.uint8) * valid[:, None], valid, (Window(0, 0, side, side),) * count)


def _segmenter(path, **options):
    spec = Spec(("red", "green", "blue"), 0.5, CLASSES, tile=64, halo=0, normalisation=SCALING)
    return OnnxNetwork(Path(path).read_bytes(), options.pop("spec", spec), path=str(path), **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GEOSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("placed", [False, True])
def test_scores_are_those_of_the_module(path, dynamic, placed):
    module = _net()
    segmenter = _segmenter(_export(path, module, dynamic=dynamic))
    if placed:
        segmenter.place(CPU)
    tiles = _tiles()
    scores = segmenter.segment(tiles, State())
    assert scores.dtype == torch.float32
    expected = PlainNetwork(module, segmenter.spec).segment(tiles, State())
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    # A model for any size takes tiles that are not those it was exported with.
    if dynamic:
        other = _tiles(3, 96)
        torch.testing.assert_close(
            segmenter.segment(other, State()),
            PlainNetwork(module, segmenter.spec).segment(other, State()),
            rtol=1e-4,
            atol=1e-5,
        )
    else:
        with pytest.raises(BundleError, match="fails on a tile of"):
            segmenter.segment(_tiles(1, 96), State())


@pytest.mark.parametrize("dynamic", [False, True])
def test_channels_may_come_last(path, dynamic):
    module = _net(last=True)
    segmenter = _segmenter(_export(path, module, dynamic=dynamic))
    assert segmenter.graph.layout == "nhwc"
    assert (segmenter.graph.channels, segmenter.graph.tile) == (3, None if dynamic else 64)
    module.last = False
    tiles = _tiles()
    expected = PlainNetwork(module, segmenter.spec).segment(tiles, State())
    torch.testing.assert_close(segmenter.segment(tiles, State()), expected, rtol=1e-4, atol=1e-5)


def test_softmax_of_the_scores_is_the_models_probability(path):
    module = _net(end=nn.Softmax(1))
    segmenter = _segmenter(_export(path, module), answer="probabilities")
    assert segmenter.graph.probabilities
    tiles = _tiles()
    expected = PlainNetwork(module, segmenter.spec).segment(tiles, State())
    torch.testing.assert_close(segmenter.segment(tiles, State()).softmax(1), expected, rtol=1e-4, atol=1e-5)
    assert not _segmenter(_export(path, _net())).graph.probabilities


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_one_channel_becomes_two_classes(path, sigmoid, threshold):
    module = _net(classes=1, end=nn.Sigmoid() if sigmoid else None)
    two = Spec(("red", "green", "blue"), 0.5, Classes.parse("background,roof"), 64, 0, normalisation=SCALING)
    segmenter = _segmenter(
        _export(path, module), spec=two, threshold=threshold, answer="probabilities" if sigmoid else "logits"
    )
    tiles = _tiles()
    with torch.no_grad():
        answer = module(normalised(tiles, SCALING))[:, 0]
    probability = answer if sigmoid else answer.sigmoid()
    scores = segmenter.segment(tiles, State())
    clear = (probability - threshold).abs() > 1e-4
    assert torch.equal(scores.argmax(1)[clear], (probability > threshold).long()[clear])
    if threshold == 0.5:
        torch.testing.assert_close(scores.softmax(1)[:, 1], probability, rtol=1e-3, atol=1e-4)


def test_coarse_scores_are_enlarged(path):
    module = _net(stride=4)
    segmenter = _segmenter(_export(path, module))
    tiles = _tiles()
    with torch.no_grad():
        coarse = module(normalised(tiles, SCALING))
    expected = nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
    torch.testing.assert_close(segmenter.segment(tiles, State()), expected, rtol=1e-4, atol=1e-5)


def test_a_bundle_keeps_the_model(path, tmp_path):
    module = _net()
    _export(path, module, metadata={"class_names": NAMES})
    description, tensors = import_onnx(path, halo=8, resolution=0.25, scaling=Scaling("imagenet"), licence="MIT")
    write_bundle(tmp_path / "m.safetensors", description, tensors)
    bundle = read_bundle(tmp_path / "m.safetensors")
    assert (bundle.description.format, bundle.description.method) == (1, "onnx")
    segmenter = load(tmp_path / "m.safetensors")
    assert isinstance(segmenter, OnnxNetwork)
    assert segmenter.spec.normalisation.offset == pytest.approx((123.675, 116.28, 103.53))
    assert (segmenter.spec.resolution, segmenter.spec.halo, segmenter.spec.tile) == (0.25, 8, 64)
    assert (bundle.description.licence, bundle.description.training) == ("MIT", {"imported_from": "model.onnx"})
    tiles = _tiles()
    expected = PlainNetwork(module, segmenter.spec).segment(tiles, State())
    torch.testing.assert_close(segmenter.segment(tiles, State()), expected, rtol=1e-4, atol=1e-5)
    # Workers get a copy without the session.
    segmenter.place(CPU)
    copied = pickle.loads(pickle.dumps(segmenter))  # noqa: S301 - our own
    assert torch.equal(copied.segment(tiles, State()), segmenter.segment(tiles, State()))


def test_metadata_of_geodeep_and_deepness_are_used(path):
    metadata = {
        "model_type": "Segmentor",
        "class_names": NAMES,
        "resolution": 30,
        "tile_size": 128,
        "tiles_overlap": 25,
        "standardization_mean": [0.42, 0.43, 0.41],
        "standardization_std": [0.17, 0.16, 0.15],
    }
    description, _ = import_onnx(_export(path, _net(), dynamic=True, metadata=metadata))
    assert [(record.name, record.background) for record in description.classes] == [
        ("_background", True),
        ("road", False),
        ("roof", False),
    ]
    assert (description.resolution, description.tile, description.halo, description.stride) == (0.3, 128, 16, 16)
    assert description.normalisation.offset == pytest.approx([107.1, 109.65, 104.55])
    assert description.normalisation.scale == pytest.approx([43.35, 40.8, 38.25])
    assert description.bands == ["red", "green", "blue"]
    # What the user says goes before what the file says.
    classes = Classes.parse("a,b,c")
    said, _ = import_onnx(
        path, bands=list("xyz"), classes=classes, resolution=1.0, tile=64, halo=8, scaling=Scaling("scene")
    )
    assert (said.bands, said.class_table(), said.resolution) == (list("xyz"), classes, 1.0)
    assert (said.tile, said.halo, said.normalisation) == (64, 8, None)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"0": "background", "1": "field", "2": "tree"}', ["background", "field", "tree"]),
        ("{0: 'background', 1: 'field', 2: 'tree'}", ["background", "field", "tree"]),
        ('["a", "b", "c"]', ["a", "b", "c"]),
    ],
)
def test_class_names_in_every_form(path, text, names):
    description, _ = import_onnx(_export(path, _net(), metadata={"names": text}), halo=0)
    assert [record.name for record in description.classes] == names
    assert description.normalisation.scale == [255.0] * 3


def test_one_named_class_gets_a_background(path):
    metadata = {"class_names": {0: "roof"}, "seg_thresh": 0.7}
    description, _ = import_onnx(_export(path, _net(classes=1, end=nn.Sigmoid()), metadata=metadata), halo=0)
    assert [record.name for record in description.classes] == ["background", "roof"]
    assert description.settings == {"answer": "probabilities", "threshold": 0.7}


def test_the_halo_is_measured_where_nothing_says_it(path):
    # Two convolutions of 5 × 5 reach four pixels; halos are tried 16 pixels apart.
    description, _ = import_onnx(_export(path, _net(), metadata={"class_names": NAMES}))
    assert (description.halo, description.stride, description.tile_exact) == (16, 8, False)
    assert description.tiling.disagreement == 0
    assert description.tiling.halo_exact is None
    pointwise = nn.Sequential(nn.Conv2d(3, 3, 1)).eval()
    description, _ = import_onnx(_export(path, pointwise, metadata={"class_names": NAMES}))
    assert description.halo == 0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "does not name its 3 classes: make a bundle of it with `geoseg import`"),
        ({"class_names": {0: "a", 1: "b"}}, "gives scores of 3 classes, not 2"),
        ({"class_names": {1: "a", 2: "b", 3: "c"}}, "not numbered 0, 1, 2"),
        ({"class_names": [1, 2, 3]}, "that are no names"),
        ({"class_names": NAMES, "model_type": "Detector"}, "a model of the kind Detector"),
        ({"class_names": NAMES, "resolution": -3}, r"says resolution -3, and it can be"),
        ({"class_names": NAMES, "tiles_overlap": "many"}, r"says tiles_overlap many"),
        ({"class_names": "x" * (2 << 20)}, "2097152 characters under class_names"),
        ({"class_names": NAMES, "standardization_mean": [1, 2]}, "give 3 finite numbers"),
        ({"class_names": NAMES, "standardization_std": "wide"}, "no numbers"),
    ],
)
def test_metadata_that_do_not_do(path, metadata, message):
    with pytest.raises((BundleError, ConfigError), match=message):
        import_onnx(_export(path, _net(), metadata=metadata))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 128}, "takes tiles of 64 pixels only"),
        ({"halo": 40}, "a halo of 40 pixels does not fit a tile of 64"),
        ({"bands": ["a"]}, "takes 3 bands, not 1"),
        ({"classes": Classes.parse("a,b")}, "gives scores of 3 classes, not 2"),
    ],
)
def test_options_that_do_not_fit_the_file(path, options, message):
    with pytest.raises((BundleError, ConfigError), match=message):
        import_onnx(_export(path, _net(), metadata={"class_names": NAMES}), **options)


def _changed(path, change):
    model = onnx.load(_export(path, _net(), metadata={"class_names": NAMES}))
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def _outside(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def _outside_in_an_attribute(model):
    tensor = onnx.TensorProto(name="hidden", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=tensor))


def _foreign(model):
    model.opset_import.append(onnx.helper.make_opsetid("evil.ops", 1))
    model.graph.node.append(onnx.helper.make_node("Run", ["output"], ["more"], domain="evil.ops"))


def _resize_input(*sides):
    def change(model):
        for dim, side in zip(model.graph.input[0].type.tensor_type.shape.dim, sides, strict=True):
            dim.dim_value = side

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_outside, "keeps weights in other files"),
        (_outside_in_an_attribute, r"keeps weights in other files \(hidden\)"),
        (_foreign, r"needs operators of 'evil\.ops'"),
        (
            lambda m: m.graph.node.append(onnx.helper.make_node("EPContext", [], ["x"], domain="com.microsoft")),
            "compiled",
        ),
        (_resize_input(1, 3, 1 << 40, 1 << 40), "it must be 8 to 4096"),
        (_resize_input(1, 1 << 30, 64, 64), "1073741824 bands|square"),
        (_resize_input(1, 3, 64, 32), "only square tiles"),
        (_resize_input(4, 3, 64, 64), "takes 4 pictures at a time"),
        (lambda m: m.graph.input.append(onnx.helper.make_tensor_value_info("mask", 1, [1])), "has 2 inputs"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", onnx.TensorProto.UINT8), "type uint8"),
        (lambda m: m.graph.ClearField("node"), "not an ONNX model, or an empty one"),
    ],
)
def test_models_that_are_refused_before_anything_runs(path, change, message):
    with pytest.raises(BundleError, match=message):
        import_onnx(_changed(path, change))


@pytest.mark.parametrize("content", [b"", b"no model at all", b"\x80\x04."])
def test_files_that_are_no_models(path, content):
    path.write_bytes(content)
    with pytest.raises(BundleError, match="not an ONNX model"):
        import_onnx(path)
    with pytest.raises(BundleError, match="cannot be read"):
        import_onnx(path.with_name("nowhere.onnx"))


def test_labels_instead_of_scores_are_refused(path):
    class Labels(Net):
        def forward(self, pixels):
            return super().forward(pixels).argmax(1)

    with pytest.raises(BundleError, match="export it without argmax"):
        import_onnx(_export(path, Labels().eval(), metadata={"class_names": NAMES}))


@pytest.mark.parametrize(
    ("settings", "tensors"),
    [({"answer": "labels"}, None), ({"answer": "logits", "threshold": 2.0}, None), (None, {"onnx": np.zeros(3)})],
)
def test_bundles_that_lie_are_refused(path, tmp_path, settings, tensors):
    description, own = import_onnx(_export(path, _net(), metadata={"class_names": NAMES}), halo=0)
    changed = description if settings is None else description.model_copy(update={"settings": settings})
    write_bundle(tmp_path / "m.safetensors", changed, own if tensors is None else tensors)
    with pytest.raises(BundleError, match=r"holds no ONNX model|does not say what its model"):
        load(tmp_path / "m.safetensors")


def test_without_a_gpu_in_onnxruntime_a_warning_says_so(path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.warns(GeosegWarning, match="runs on the CPU"):
        _segmenter(_export(path, _net())).place(torch.device("cuda", 0))


def test_threads_are_those_of_torch(path):
    segmenter = _segmenter(_export(path, _net()))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        segmenter.place(CPU)
    finally:
        torch.set_num_threads(before)
    assert segmenter._session.get_session_options().intra_op_num_threads == 3


def test_a_file_becomes_a_bundle_once(path, cache):
    _export(path, _net(), metadata={"class_names": NAMES})
    first = resolve_bundle(path)
    stamp = Path(first).stat().st_mtime_ns
    assert (Path(first).parent, resolve_bundle(path), Path(first).stat().st_mtime_ns) == (cache, first, stamp)
    _export(path, _net(end=nn.Softmax(1)), metadata={"class_names": NAMES})
    assert resolve_bundle(path) != first


def test_a_scene_gets_the_labels_of_the_torch_network(path, tmp_path, piece):
    module = _net(classes=2)
    scene = piece(300, 500, row=500, col=300)
    with rasterio.open(scene) as file:
        pixels = file.read()
    names = {
        "class_names": {0: "background", 1: "built"},
        "standardization_mean": [0.4] * 3,
        "standardization_std": [0.2] * 3,
    }
    _export(path, module, side=128, metadata=names)
    geoseg.predict(scene, tmp_path / "labels.tif", path)
    with rasterio.open(tmp_path / "labels.tif") as file:
        labels = file.read(1)
    bundle = read_bundle(resolve_bundle(path))
    plain = PlainNetwork(module, load(bundle.path).spec)
    geoseg.predict(scene, tmp_path / "torch.tif", plain)
    with rasterio.open(tmp_path / "torch.tif") as file:
        expected = file.read(1)
    assert len(np.unique(expected)) == 2
    assert np.array_equal(labels, expected)
    # In tiles as in one pass.
    with torch.no_grad():
        whole = module((torch.from_numpy(pixels[None].astype(np.float32)) / 255 - 0.4) / 0.2).argmax(1)[0].numpy()
    inner = (slice(8, -8), slice(8, -8))
    assert (labels[inner] == whole[inner]).mean() > 0.9999
