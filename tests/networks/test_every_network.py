"""One conformance suite that every registered network must pass, each in its smallest form."""

import copy
import warnings

import pytest
import torch
from torch import nn

from geoseg import networks
from geoseg.networks.inference import fold_batch_norm
from geoseg.networks.receptive_field import exact_halo

BANDS, CLASSES = 4, 3
# Options that make a network small; those with an encoder get the smallest of timm's unless they are named here.
_SMALL = {
    "plainconv": {"width": 4},
    "gsn": {"encoder": "test_resnet", "decoder_channels": 8},
    "hrnet": {"width": "small-v1"},
    "icnet": {},
    "segnet": {"width": 4},
    "lsr-unet": {},
    "lsr-unet-large": {},
    "lsr-fcn": {"width": 4, "depth": 3},
    "local-statistics": {"scales": [1, 2], "hidden": [4]},
    "unet-lext": {"width": 4},
    "unet++": {"encoder": "test_resnet", "decoder_channels": [32, 16, 8, 8, 8]},
    "manet": {"encoder": "test_resnet", "decoder_channels": [32, 16, 8, 8, 8]},
    "upernet": {"encoder": "test_resnet", "decoder_channels": 32},
    "segformer": {"decoder_segmentation_channels": 32},
    "dpt": {
        "encoder": "test_vit",
        "decoder_intermediate_channels": [8, 8, 16, 16],
        "decoder_fusion_channels": 16,
    },
    "torchvision-fcn": {},
    "torchvision-deeplabv3": {"encoder": "mobilenet_v3_large"},
    "torchvision-lraspp": {},
}
# How many weights a library makes and does not use: the transformer's head and last norm.
_UNREACHED = {"dpt": 4}
# Two values a channel at stride 32 at least, for batch norm in training.
_SIDES = (96, 64)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """On maps this small threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _made(name, bands=BANDS, classes=CLASSES, seed=0, **options):
    torch.manual_seed(seed)
    small = _SMALL.get(name, {"encoder": "test_resnet"})
    return networks.create(name, in_channels=bands, num_classes=classes, **small, **options)


@pytest.fixture(scope="module", params=networks.names())
def built(request):
    """Name and network, ready for inference; it is shared, so what changes it works on a copy."""
    return request.param, _settled(_made(request.param))


def _settled(network):
    """Return the network in evaluation mode, its batch norms knowing the features, so that scores vary."""
    network.train()
    with torch.no_grad():
        for seed in range(3):
            network(_noise(2, BANDS, *_SIDES, seed=seed))
    return network.eval()


def _noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _scores(network, pixels):
    with torch.inference_mode():
        return network(pixels)


@pytest.mark.parametrize("size", [(64, 96), (45, 70), (3, 1), (1, 1)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_scores_have_the_size_of_the_input(built, size):
    _, network = built
    for batch in (1, 2):
        scores = _scores(network, _noise(batch, BANDS, *size))
        assert scores.shape == (batch, CLASSES, *size)
        assert torch.isfinite(scores).all()


@pytest.mark.parametrize(("bands", "classes"), [(1, 2), (13, 20)])
@pytest.mark.parametrize("name", networks.names())
def test_any_number_of_bands_and_classes(name, bands, classes):
    network = _made(name, bands, classes).eval()
    assert _scores(network, _noise(1, bands, 33, 64)).shape == (1, classes, 33, 64)


def test_facts_agree_with_the_network(built):
    name, network = built
    info = networks.info(name)
    # Facts are of the default options; the small ones agree, but for torchvision's MobileNet.
    assert network.stride == {"torchvision-deeplabv3": 16}.get(name, info.stride)
    assert network.min_size >= 1
    assert network.stride * (network.min_size // network.stride) == network.min_size
    assert all(key.startswith("network.") for key in network.state_dict())


def test_evaluation_is_deterministic_and_leaves_the_weights_alone(built):
    _, network = built
    before = {key: value.clone() for key, value in network.state_dict().items()}
    pixels = _noise(1, BANDS, 64, 64)
    assert torch.equal(_scores(network, pixels), _scores(network, pixels))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_equal_seeds_give_equal_weights(built):
    name, network = built
    new = _made(name)
    assert new.training
    # What was made with this seed before has learned nothing since, but for its batch norms' statistics.
    first, again = (dict(each.named_parameters()) for each in (network, new))
    other = dict(_made(name, seed=4).named_parameters())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_one_sample_does_not_depend_on_the_others(built):
    _, network = built
    pixels = _noise(2, BANDS, 64, 64)
    both, alone = _scores(network, pixels)[1:], _scores(network, pixels[1:])
    torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-4 * float(alone.std()))


def test_scores_follow_the_pixels(built):
    _, network = built
    scores = _scores(network, _noise(1, BANDS, *_SIDES))
    assert float(scores.std(dim=(2, 3)).max()) > 0
    assert not torch.equal(scores, _scores(network, _noise(1, BANDS, *_SIDES, seed=2)))


@pytest.mark.parametrize("batch", [1, 2])
def test_training_reaches_every_weight_with_finite_gradients(built, batch):
    name, network = built
    network = copy.deepcopy(network).train()
    pixels = _noise(batch, BANDS, *_SIDES)
    output = network(pixels)
    outputs = output if isinstance(output, dict) else {"scores": output}
    assert next(iter(outputs)) == "scores"
    assert set(outputs) - {"scores"} <= set(networks.info(name).auxiliary)
    assert outputs["scores"].shape == (batch, CLASSES, *_SIDES)
    # Random signs: a plain sum is the same for every input of a batch norm.
    loss = sum((value * _noise(*value.shape).sign()).mean() for value in outputs.values())
    loss.backward()
    gradients = {key: value.grad for key, value in network.named_parameters() if value.requires_grad}
    reached = {key for key, gradient in gradients.items() if gradient is not None}
    assert all(bool(torch.isfinite(gradients[key]).all()) for key in reached)
    missed = set(gradients) - reached
    assert len(missed) == _UNREACHED.get(name, 0), sorted(missed)


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bfloat16_gives_nearly_the_same_scores(built, how):
    name, network = built
    pixels = _noise(1, BANDS, *_SIDES)
    expected = _scores(network, pixels)
    if how == "weights":
        scores = _scores(copy.deepcopy(network).bfloat16(), pixels.bfloat16())
        assert scores.dtype == torch.bfloat16
    else:
        with torch.autocast("cpu", torch.bfloat16):
            scores = _scores(network, pixels)
    error = (scores.float() - expected).square().mean().sqrt()
    # A maximum that rounding moves is put elsewhere by SegNet's decoder.
    assert float(error) < (0.4 if name == "segnet" else 0.1) * float(expected.std())


def test_batch_norm_folds_into_the_convolutions(built):
    name, network = built
    folded = fold_batch_norm(copy.deepcopy(network), (1, BANDS, 64, 64))
    before, after = (sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (network, folded))
    assert after < before or before == 0, name
    pixels = _noise(1, BANDS, 50, 70, seed=5)
    expected = _scores(network, pixels)
    torch.testing.assert_close(_scores(folded, pixels), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_layers_come_beside_the_same_scores(built):
    _, network = built
    names = getattr(network, "layers", ())
    assert len(set(names)) == len(names)
    if not names:
        return
    pixels = _noise(2, BANDS, 45, 70)
    with torch.inference_mode():
        scores, layers = network.with_layers(pixels)
    assert layers.shape == (2, len(names), 45, 70)
    assert torch.isfinite(layers).all()
    torch.testing.assert_close(scores, _scores(network, pixels))


def test_tracing_keeps_the_scores(built):
    _, network = built
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer remarks on every size it takes for constant
        traced = torch.jit.trace(network, _noise(1, BANDS, *_SIDES), check_trace=False)
    pixels = _noise(1, BANDS, *_SIDES, seed=7)
    expected = _scores(network, pixels)
    torch.testing.assert_close(traced(pixels).detach(), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.slow
def test_export_keeps_the_scores(built):
    _, network = built
    program = torch.export.export(network, (_noise(1, BANDS, *_SIDES),))
    pixels = _noise(1, BANDS, *_SIDES, seed=7)
    expected = _scores(network, pixels)
    scores = program.module()(pixels).detach()
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.slow
def test_tiles_of_exact_networks_give_the_scores_of_one_pass(built):
    name, network = built
    if not networks.info(name).tile_exact:
        pytest.skip("tiles of this network are not exact")
    halo = exact_halo(network, BANDS, network.stride)
    assert halo is not None
    stride = network.stride
    core = 2 * stride
    size = 2 * halo + core
    scene = _noise(1, BANDS, size + stride, size + 2 * stride)
    whole = _scores(network, scene)[..., stride:, 2 * stride :]
    tile = _scores(network, scene[..., stride:, 2 * stride :])
    inner = slice(halo, halo + core)
    error = (tile[..., inner, inner] - whole[..., inner, inner]).square().mean().sqrt()
    assert float(error) <= 1e-5 * float(whole.std())
