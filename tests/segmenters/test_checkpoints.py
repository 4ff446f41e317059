"""Weights of other programs: found, matched by name, giving the scores of the module that wrote them; or refused."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import segmentation

from geoseg import networks
from geoseg.bundle import NormalisationRecord, read_bundle, write_bundle
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError
from geoseg.networks.hrnet import build_hrnet
from geoseg.segmenters.checkpoint_files import read_checkpoint
from geoseg.segmenters.checkpoints import filled_network, import_checkpoint
from geoseg.segmenters.loading import load
from geoseg.segmenters.network import PlainNetwork, module_of, new_bundle
from geoseg.segmenters.scaling import Scaling

CLASSES = Classes.parse("background,road,roof")
BANDS = ["red", "green", "blue"]


def _trained(module, seed=3):
    """Give a module weights and statistics that no untrained one has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.dtype == torch.float32:
                value.mul_(0.8 + 0.4 * torch.rand(value.shape, generator=generator))
                value.add_(0.01 * torch.rand(value.shape, generator=generator))
    return module.eval()


def _unet(encoder="resnet18", **options):
    return _trained(smp.Unet(encoder, encoder_weights=None, classes=3, **options))


@pytest.fixture(scope="module")
def unet():
    return _unet()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pt"


def _filled(path, network="unet", bands=3, **options):
    """Return our network with the weights of a file, the options it was built with, and how the names matched."""
    module, given, match = filled_network(
        read_checkpoint(path), network, in_channels=bands, num_classes=len(CLASSES), **options
    )
    return module.eval(), given, match


def _scores(module, bands=3, side=64):
    pixels = torch.randn(1, bands, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scores = module(pixels)
    return scores["out"] if isinstance(scores, dict) else scores


def _under(prefix, state):
    return OrderedDict((f"{prefix}{name}", value) for name, value in state.items())


def _without_counts(state):
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


LAYOUTS = {
    "plain": (lambda s: s, ""),
    "data parallel": (lambda s: _under("module.", s), "module."),
    "compiled": (lambda s: {"state_dict": _under("model._orig_mod.", s), "epoch": 3}, "model._orig_mod."),
    "torchgeo": (
        lambda s: {
            "state_dict": {**_under("model.", s), "criterion.weight": torch.ones(3)},
            "hyper_parameters": {"model": "unet", "backbone": "resnet18", "in_channels": 3, "num_classes": 3},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
            "pytorch-lightning_version": "2.5.0",
        },
        "model.",
    ),
    "training script": (lambda s: {"model": s, "optimizer": {"lr": 0.1}, "epoch": 9}, ""),
    "an odd name": (lambda s: {"model_state_dict": _under("segmentor.net.", s)}, "segmentor.net."),
}


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return _trained(networks.create("plainconv", in_channels=3, num_classes=3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_are_those_of_the_module_whatever_the_layout(small, path, layout):
    wrap, prefix = LAYOUTS[layout]
    torch.save(wrap(small.network.state_dict()), path)
    module, _, match = _filled(path, "plainconv")
    assert torch.equal(_scores(module), _scores(small))
    assert match.prefix == prefix
    assert match.taken == 8
    assert match.left_out == (("criterion.weight",) if layout == "torchgeo" else ())


@pytest.mark.parametrize("legacy", [False, True])
def test_all_kinds_of_torch_file_are_read(small, path, legacy):
    torch.save(small.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(_scores(_filled(path, "plainconv")[0]), _scores(small))


def test_batch_norms_may_have_no_counts(unet, path):
    torch.save({"state_dict": _under("model.", _without_counts(unet.state_dict()))}, path)
    module, _, match = _filled(path)
    assert torch.equal(_scores(module), _scores(unet))
    assert match.taken == len(_without_counts(unet.state_dict()))


def test_safetensors_and_half_precision_are_read(small, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(
        {f"model.{k}": v.half() if v.is_floating_point() else v for k, v in small.network.state_dict().items()}, path
    )
    module, _, match = _filled(path, "plainconv")
    assert match.prefix == "model."
    expected = _scores(small)
    assert (_scores(module) - expected).abs().max() < 0.02 * expected.abs().max()


@pytest.mark.parametrize(
    ("network", "architecture", "encoder"),
    [
        ("pspnet", "PSPNet", "resnet18"),
        ("linknet", "Linknet", "tu-resnet18"),
        pytest.param("unet", "Unet", "resnet50", marks=pytest.mark.slow),
        pytest.param("linknet", "Linknet", "resnext50_32x4d", marks=pytest.mark.slow),
        pytest.param("fpn", "FPN", "resnet18", marks=pytest.mark.slow),
        pytest.param("unet", "Unet", "mobilenet_v2", marks=pytest.mark.slow),
        pytest.param("deeplabv3+", "DeepLabV3Plus", "tu-resnet18", marks=pytest.mark.slow),
    ],
)
def test_encoders_of_the_library_and_of_timm(path, network, architecture, encoder):
    module = _trained(getattr(smp, architecture)(encoder, encoder_weights=None, classes=3))
    torch.save({"state_dict": _under("model.", module.state_dict())}, path)
    ours, _, match = _filled(path, network, encoder=encoder)
    expected = _scores(module)
    assert (_scores(ours) - expected).abs().max() <= 1e-6 * expected.abs().max()
    # A stage that this architecture does not run is the only thing left out.
    assert all(name.startswith(("model.encoder.layer3.", "model.encoder.layer4.")) for name in match.left_out)
    assert bool(match.left_out) == (network == "pspnet")


def test_other_bands_and_options(path):
    module = _unet(in_channels=5, decoder_attention_type="scse")
    torch.save(module.state_dict(), path)
    options = {"decoder_attention_type": "scse"}
    ours, given, _ = _filled(path, bands=5, options=options)
    assert torch.equal(_scores(ours, 5), _scores(module, 5))
    assert given == options
    # Left over weights belong to a network that computes something else.
    with pytest.raises(BundleError, match="that the network does not"):
        _filled(path, bands=5)


def test_a_second_head_for_whole_tiles_is_left_out(path):
    module = _unet(aux_params={"classes": 4})
    torch.save(module.state_dict(), path)
    pixels = torch.randn(1, 3, 64, 64)
    ours, _, match = _filled(path)
    with torch.no_grad():
        assert torch.equal(ours(pixels), module(pixels)[0])
    assert match.left_out == ("classification_head.3.weight", "classification_head.3.bias")


@pytest.mark.parametrize(
    ("network", "builder", "options"),
    [
        ("torchvision-lraspp", segmentation.lraspp_mobilenet_v3_large, {}),
        ("torchvision-deeplabv3", segmentation.deeplabv3_mobilenet_v3_large, {"aux_loss": True}),
    ],
)
def test_networks_of_torchvision(path, network, builder, options):
    module = _trained(builder(weights=None, weights_backbone=None, num_classes=3, **options))
    torch.save({"model": module.state_dict(), "epoch": 2}, path)
    ours, _, match = _filled(path, network, encoder="mobilenet_v3_large")
    assert torch.equal(_scores(ours), _scores(module))
    assert all(name.startswith("aux_classifier.") for name in match.left_out)
    assert bool(match.left_out) == bool(options)


def test_a_refiner_needs_no_classes_and_wants_images_scaled_as_its_authors_do(path):
    small = {"width": 0.02}
    torch.manual_seed(0)
    refiner = networks.create("cascadepsp", in_channels=3, num_classes=1, encoder="test_resnet", **small)
    _trained(refiner)
    torch.save(_under("module.", refiner.state_dict()), path)
    description, tensors, match = import_checkpoint(
        path, "cascadepsp", bands=BANDS, encoder="test_resnet", options=small, licence="MIT"
    )
    assert match.prefix == "module."
    assert (description.method, description.tile, description.halo) == ("refiner", 900, 0)
    assert description.normalisation == Scaling("imagenet").record(3)
    assert description.class_table().ids == (0, 1)
    named = import_checkpoint(
        path, "cascadepsp", bands=BANDS, encoder="test_resnet", options=small, classes=CLASSES, scaling=Scaling("unit")
    )[0]
    assert named.class_table() == CLASSES
    assert named.normalisation == Scaling("unit").record(3)
    with pytest.raises(ConfigError, match="it looks at the whole crop"):
        import_checkpoint(path, "cascadepsp", bands=BANDS, encoder="test_resnet", options=small, halo=8)
    model = path.with_name("refiner.safetensors")
    write_bundle(model, description, tensors)
    image, mask = torch.randn(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(
            module_of(read_bundle(model)).eval()(image, mask)["out_224"], refiner(image, mask)["out_224"]
        )
    with pytest.raises(BundleError, match="segments nothing by itself"):
        load(model)


def test_dilated_encoders_of_the_library_are_not_taken_for_timms(path):
    module = smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=3)
    torch.save(module.state_dict(), path)
    with pytest.raises(BundleError, match=r"encoder\.model\.conv1\.weight"):
        _filled(path, "deeplabv3+", encoder="resnet18")


@pytest.fixture(scope="module")
def small_hrnet():
    torch.manual_seed(0)
    return _trained(build_hrnet(in_channels=3, num_classes=3, width="small-v1"))


def _as_authors(state):
    renamed = {name.removeprefix("network.").split(".", 1)[1]: value for name, value in state.items()}
    return {**_under("model.", renamed), "loss.criterion.weight": torch.ones(3)}


@pytest.mark.parametrize("layout", ["authors, parallel", "ours"])
def test_hrnet_in_its_authors_files(small_hrnet, path, layout):
    state = small_hrnet.state_dict()
    content = {
        "authors, parallel": {"state_dict": _under("module.", _as_authors(state))},
        "ours": state,
    }[layout]
    torch.save(content, path)
    module, given, match = _filled(path, "hrnet")
    assert torch.equal(_scores(module), _scores(small_hrnet))
    assert given == {"width": "small-v1"}
    assert match.taken == len(_without_counts(state))


def test_inplace_abn_weights_become_absolute(small_hrnet, path):
    state = {name: value.clone() for name, value in _as_authors(small_hrnet.state_dict()).items()}
    state["model.bn1.weight"][::2] *= -1
    torch.save(_without_counts(state), path)
    plain, _, _ = _filled(path, "hrnet")
    converted, _, _ = _filled(path, "hrnet", inplace_abn=True)
    weight = state["model.bn1.weight"]
    assert torch.equal(plain.state_dict()["network.backbone.bn1.weight"], weight)
    assert torch.equal(converted.state_dict()["network.backbone.bn1.weight"], weight.abs() + 1e-5)
    with pytest.raises(ConfigError, match="matter of network hrnet"):
        _filled(path, "unet", inplace_abn=True)


def test_mmsegmentation_names_its_classes(small_hrnet, path):
    state = {}
    for name, value in _as_authors(small_hrnet.state_dict()).items():
        name = name.removeprefix("model.")
        name = name.replace("last_layer.0", "decode_head.convs.0.conv").replace(
            "last_layer.1", "decode_head.convs.0.bn"
        )
        name = name.replace("last_layer.3", "decode_head.conv_seg")
        if name.startswith("loss") or name == "decode_head.convs.0.conv.bias":
            continue
        state[name if name.startswith("decode_head") else f"backbone.{name}"] = value
    state["auxiliary_head.conv_seg.bias"] = torch.zeros(3)
    torch.save({"state_dict": state, "meta": {"CLASSES": ("background", "road", "roof")}}, path)
    assert read_checkpoint(path).classes == ("background", "road", "roof")
    module, _, _ = _filled(path, "hrnet")
    expected = small_hrnet.state_dict()
    ours = module.state_dict()
    assert not ours.pop("network.head.last_layer.0.bias").any()
    assert all(torch.equal(value, expected[name]) for name, value in ours.items())


def test_classes_are_the_files_unless_others_are_given(path):
    module = _trained(networks.create("plainconv", in_channels=3, num_classes=2))
    meta = {"dataset_meta": {"classes": ["_background_", "road"], "palette": [[0, 0, 0], [1, 1, 1]]}}
    torch.save({"state_dict": module.state_dict(), "meta": meta}, path)
    description, _, _ = import_checkpoint(path, "plainconv", bands=BANDS)
    assert [(record.name, record.background) for record in description.classes] == [
        ("_background_", True),
        ("road", False),
    ]
    description, _, _ = import_checkpoint(path, "plainconv", bands=BANDS, classes=Classes.parse("a,b"))
    assert [record.name for record in description.classes] == ["a", "b"]
    torch.save({"state_dict": module.state_dict()}, path)
    with pytest.raises(ConfigError, match="does not name its classes"):
        import_checkpoint(path, "plainconv", bands=BANDS)


def test_the_bundle_says_what_it_was_told(path):
    module = _trained(networks.create("plainconv", in_channels=3, num_classes=3, depth=4))
    torch.save({"state_dict": _under("model.", module.network.state_dict())}, path)
    description, tensors, match = import_checkpoint(
        path,
        "plainconv",
        bands=BANDS,
        classes=CLASSES,
        options={"depth": 4},
        scaling=Scaling("imagenet"),
        resolution=0.3,
        licence="CC-BY-4.0",
    )
    assert (match.taken, match.prefix, match.left_out) == (10, "model.", ())
    # The halo is that of these weights.
    assert (description.halo, description.tile_exact, description.resolution) == (4, True, 0.3)
    assert (description.licence, description.training) == ("CC-BY-4.0", {"imported_from": "weights.pt"})
    assert description.normalisation.offset == pytest.approx([123.675, 116.28, 103.53])
    assert description.normalisation.scale == pytest.approx([58.395, 57.12, 57.375])
    assert description.class_table() == CLASSES
    write_bundle(path.with_name("b.safetensors"), description, tensors)
    bundled = PlainNetwork.from_bundle(read_bundle(path.with_name("b.safetensors")))
    assert torch.equal(_scores(bundled.module.eval()), _scores(module))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("decoder.blocks.0.conv1.0.weight"),
            r"lacks 1 of 152 tensors \(decoder\.blocks\.0\.conv1\.0\.w",
        ),
        (lambda s: s.update(extra=torch.ones(2)), r"has 1 that the network does not \(extra\)"),
        (
            lambda s: s.update({"segmentation_head.0.bias": torch.ones(7)}),
            r"has 1 of another shape \(segmentation_head\.0\.bias \(7,\) for \(3,\)\)",
        ),
        (lambda s: s["segmentation_head.0.bias"].fill_(float("nan")), "segmentation_head.0.bias that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(unet, path, change, message):
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    change(state)
    torch.save({"state_dict": state, "hyper_parameters": {"backbone": "resnet18"}}, path)
    with pytest.raises(BundleError, match=message) as caught:
        _filled(path)
    assert "finite" in message or "The file says: backbone resnet18." in str(caught.value)


def test_of_two_networks_in_a_file_one_must_be_named(small, path):
    other = _trained(networks.create("plainconv", in_channels=3, num_classes=3), seed=8)
    state = {**_under("student.", small.network.state_dict()), **_under("teacher.", other.network.state_dict())}
    torch.save(state, path)
    with pytest.raises(BundleError, match=r"two networks that fit, behind 'student\.' and 'teacher\.'.*--prefix"):
        _filled(path, "plainconv")
    module, _, match = _filled(path, "plainconv", prefix="teacher.")
    assert torch.equal(_scores(module), _scores(other))
    assert match.left_out == tuple(name for name in state if name.startswith("student."))


class _Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("kind", ["pickle", "torch", "legacy", "inside", "module"])
def test_nothing_in_a_file_is_run(small, tmp_path, kind):
    mark, path = tmp_path / "ran", tmp_path / "weights.pt"
    bomb = _Bomb(mark)
    if kind == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    elif kind == "module":
        torch.save(nn.Linear(2, 2), path)
    else:
        content = {"state_dict": small.state_dict(), "callbacks": bomb} if kind == "inside" else bomb
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    with pytest.raises(BundleError, match=r"could run any code when opened, so it was not opened|cannot be read"):
        read_checkpoint(path)
    assert not mark.exists()


def test_what_was_refused_is_named(tmp_path):
    torch.save({"callbacks": _Bomb(tmp_path / "ran")}, tmp_path / "weights.pt")
    with pytest.raises(BundleError, match=r"holds more than weights \(pathlib\.Path\.touch\)|holds more than weights"):
        read_checkpoint(tmp_path / "weights.pt")


def test_an_archive_that_unpacks_to_more_is_refused(unet, path):
    torch.save({"weight": torch.zeros(1 << 20)}, path)
    with (
        zipfile.ZipFile(path) as whole,
        zipfile.ZipFile(path.with_name("packed.pt"), "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(BundleError, match="packed archive"):
        read_checkpoint(path.with_name("packed.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a nothing here", "neither a torch file"),
        (b"PK\x03\x04 cut short", "damaged"),
        (b"\x80\x02", "cannot be"),
    ],
)
def test_files_that_hold_no_weights(path, content, message):
    path.write_bytes(content)
    with pytest.raises(BundleError, match=message):
        read_checkpoint(path)


def test_files_without_tensors_bundles_and_missing_files(path, tmp_path):
    torch.save({"epoch": 3, "state_dict": {"note": "none"}}, path)
    with pytest.raises(BundleError, match="holds no weights"):
        read_checkpoint(path)
    with pytest.raises(BundleError, match=r"nowhere\.pt cannot be read"):
        read_checkpoint(tmp_path / "nowhere.pt")
    write_bundle(tmp_path / "b.safetensors", *new_bundle("plainconv", bands=["a"], classes=CLASSES))
    with pytest.raises(BundleError, match="is a bundle already"):
        read_checkpoint(tmp_path / "b.safetensors")


def test_a_tensor_that_repeats_one_value_is_not_spread_out(small, path):
    # One stored number, said to be 2^40: comparing shapes must come before touching values.
    state = dict(small.state_dict())
    state["network.0.bias"] = torch.zeros(1).expand(1 << 40)
    torch.save(state, path)
    with pytest.raises(BundleError, match="of another shape"):
        _filled(path, "plainconv")


@pytest.mark.parametrize(
    ("scaling", "offset", "scale"),
    [
        (Scaling(), None, None),
        (Scaling("unit", 10000.0), [0, 0, 0], [10000, 10000, 10000]),
        (Scaling(mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 1.0)), [127.5, 63.75, 0], [127.5, 127.5, 255]),
        (Scaling("unit", 1.0, (9.0, 8.0, 7.0), (3.0, 2.0, 1.0)), [9, 8, 7], [3, 2, 1]),
    ],
)
def test_scalings(scaling, offset, scale):
    record = scaling.record(3)
    if offset is None:
        assert record is None
    else:
        assert record == NormalisationRecord(offset=offset, scale=scale)
        values = np.array([10.0, 20.0, 30.0])
        normalised = (values - record.offset) / record.scale
        mean, std = np.array(scaling.mean or [0] * 3), np.array(scaling.std or [1] * 3)
        np.testing.assert_allclose(normalised, (values / scaling.full_scale - mean) / std)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (Scaling("imagenat"), "did you mean imagenet"),
        (Scaling("unit", 0.0), "full scale is 0"),
        (Scaling(mean=(0.0,)), "go together"),
        (Scaling(mean=(0.0,), std=(1.0,)), "give 4 finite numbers"),
        (Scaling(mean=(0.0,) * 4, std=(1.0, 1.0, 0.0, 1.0)), "above 0"),
        (Scaling("imagenet"), "takes 4 bands"),
    ],
)
def test_scalings_that_are_refused(scaling, message):
    with pytest.raises(ConfigError, match=message):
        scaling.record(4)
