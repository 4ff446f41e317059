"""GSN: the gate's identities, the decoder, any bands, classes and encoders, and a small training run."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.networks.gsn import EntropyControl, entropy_gate
from geoseg.networks.inference import fold_batch_norm


def _noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _built(bands=3, classes=4, seed=0, **options):
    torch.manual_seed(seed)
    options = {"encoder": "test_resnet", "decoder_channels": 8, **options}
    return networks.create("gsn", in_channels=bands, num_classes=classes, **options).eval()


def _opened(network):
    """The network with no residual branch shut by a scale of zero, as training would have it."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return network


def _control(**options):
    torch.manual_seed(0)
    return EntropyControl(4, 3, **options).double().eval()


@pytest.mark.parametrize("classes", [2, 3, 20])
def test_the_gate_by_its_definition(classes):
    scores = 3 * _noise(2, classes, 5, 7).double()
    chances = scores.softmax(1)
    expected = -(chances * chances.log()).sum(1, keepdim=True) / math.log(classes)
    torch.testing.assert_close(entropy_gate(scores), expected)


def test_the_gates_gradient_by_its_formula():
    scores = (3 * _noise(2, 6, 5, 7).double()).requires_grad_()
    (gradient,) = torch.autograd.grad(entropy_gate(scores).sum(), scores)
    logarithms = scores.log_softmax(1)
    entropy = -(logarithms.exp() * logarithms).sum(1, keepdim=True)
    torch.testing.assert_close(gradient, -logarithms.exp() * (logarithms + entropy) / math.log(6))


def test_what_leaves_the_gate_alone():
    scores = 2 * _noise(2, 5, 4, 3).double()
    gate = entropy_gate(scores)
    torch.testing.assert_close(entropy_gate(scores + 7.5), gate)
    torch.testing.assert_close(entropy_gate(scores[:, [3, 0, 4, 1, 2]]), gate)
    assert gate.shape == (2, 1, 4, 3)


@pytest.mark.parametrize("classes", [1, 2, 6])
def test_scores_all_alike_open_the_gate(classes):
    value = 0.0 if classes == 1 else -3.0
    gate = entropy_gate(torch.full((1, classes, 2, 2), value))
    torch.testing.assert_close(gate, torch.ones(1, 1, 2, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_extreme_scores_shut_it_without_nan(dtype, classes):
    scores = torch.tensor([1e4, -1e4, 0.0]).to(dtype)[:classes].view(1, classes, 1, 1).requires_grad_()
    gate = entropy_gate(scores)
    assert gate.dtype == torch.float32
    (gradient,) = torch.autograd.grad(gate.sum(), scores)
    assert gate.item() == 0
    assert torch.count_nonzero(gradient) == 0


def test_a_single_channel_is_a_sigmoids():
    scores = 3 * _noise(2, 1, 4, 4).double()
    torch.testing.assert_close(entropy_gate(scores), entropy_gate(torch.cat([scores, torch.zeros_like(scores)], 1)))


def test_a_certain_upper_map_takes_no_detail():
    control = _control()
    nn.init.zeros_(control.score.weight)
    with torch.no_grad():
        control.score.bias.copy_(torch.tensor([1e4, 0.0, -1e4]))
    lower = _noise(1, 4, 8, 10).double().requires_grad_()
    joined = control(_noise(1, 4, 4, 5, seed=2).double(), lower)
    (gradient,) = torch.autograd.grad(joined.features.square().sum(), lower)
    assert torch.count_nonzero(gradient) == 0
    assert torch.count_nonzero(joined.gate) == 0


def test_an_undecided_upper_map_takes_it_whole():
    control, plain = _control(), _control(gate="ones")
    nn.init.zeros_(control.score.weight)
    nn.init.zeros_(control.score.bias)
    upper, lower = _noise(1, 4, 4, 5, seed=2).double(), _noise(1, 4, 8, 10).double()
    torch.testing.assert_close(control(upper, lower).features, plain(upper, lower).features)


def test_the_gate_follows_the_upper_map_alone():
    control = _control()
    upper = _noise(1, 4, 4, 5, seed=2).double()
    gates = [control(upper, _noise(1, 4, 8, 10, seed=seed).double()).gate for seed in (3, 4)]
    assert torch.equal(*gates)


def test_scores_are_enlarged_before_their_entropy():
    # Two certain neighbours that disagree: the gate must open between them.
    control = _control()
    with torch.no_grad():
        control.score.weight.zero_()
        control.score.bias.zero_()
        control.score.weight[0, 0] = 1.0
        control.score.weight[1, 0] = -1.0
    upper = torch.zeros(1, 4, 1, 2, dtype=torch.float64)
    upper[0, 0, 0] = torch.tensor([50.0, -50.0])
    gate = control(upper, torch.zeros(1, 4, 1, 9, dtype=torch.float64)).gate[0, 0, 0]
    assert gate[0] < 1e-6
    assert gate[4] > 0.6


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_through_the_gate_can_be_stopped(detach):
    control = _control(detach_gate=detach)
    control(_noise(1, 4, 4, 5).double(), _noise(1, 4, 8, 10, seed=2).double()).features.sum().backward()
    assert (control.score.weight.grad is None) == detach


@pytest.mark.parametrize(
    ("encoder", "channels", "classes", "parameters", "gmacs"),
    [
        ("resnet101", 128, 6, 45_663_838, 93.771988992),
        ("resnet101", 64, 6, 43_418_462, 54.406381568),
        ("resnet101", 256, 6, 54_135_902, 249.623871488),
        ("resnet50", 64, 5, 24_426_009, 35.006),
    ],
)
def test_parameters_and_multiplications(encoder, channels, classes, parameters, gmacs):
    for gate in ("entropy", "ones"):
        with torch.device("meta"):
            network = networks.create(
                "gsn", in_channels=3, num_classes=classes, encoder=encoder, decoder_channels=channels, gate=gate
            ).eval()
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 512, 512))
    # The counter counts a multiplication and an addition for each; the last figure is known to a million.
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, abs=1e-8 if gmacs != 35.006 else 5e-4)


@pytest.mark.parametrize(("bands", "classes", "size"), [(1, 2, (1, 1)), (4, 7, (33, 70)), (13, 20, (64, 31))])
@pytest.mark.parametrize("skip", [False, True])
def test_any_bands_classes_and_size(bands, classes, size, skip):
    network = _built(bands, classes, skip_stride2=skip)
    pixels = _noise(1, bands, *size)
    with torch.inference_mode():
        scores, layers = network.with_layers(pixels)
        assert torch.equal(network(pixels), scores)
    assert scores.shape == (1, classes, *size)
    assert layers.shape == (1, len(network.layers), *size)
    assert layers.dtype == torch.float32
    assert layers.min() >= 0
    assert layers.max() <= 1
    torch.testing.assert_close(layers[:, -1:], entropy_gate(scores).clamp(0, 1))


def test_the_core_itself_takes_sides_that_the_stride_does_not_divide():
    network = _built().network
    with torch.inference_mode():
        assert network(_noise(1, 3, 45, 71)).shape == (1, 4, 45, 71)


@pytest.mark.parametrize(("encoder", "levels"), [("mobilenetv2_100", 4), ("hrnet_w18_small", 4), ("convnext_atto", 3)])
def test_other_encoders(encoder, levels):
    network = _built(encoder=encoder)
    assert len(network.layers) == levels + 1
    with torch.inference_mode():
        assert network(_noise(1, 3, 40, 72)).shape == (1, 4, 40, 72)


def test_names_of_layers_and_auxiliary_scores():
    network = _built()
    assert network.layers == ("gate_16", "gate_8", "gate_4", "gate_2", "entropy")
    assert _built(skip_stride2=True).layers == ("gate_16", "gate_8", "gate_4", "entropy")
    output = network.train()(_noise(2, 3, 70, 90))
    assert tuple(output) == ("scores", *networks.info("gsn").auxiliary)
    assert all(value.shape == (2, 4, 70, 90) for value in output.values())


def test_auxiliary_scores_lie_where_the_pixels_are():
    """Padded inputs are cropped only after the coarse scores are enlarged."""
    network = _built().train()
    pixels = _noise(2, 3, 70, 90)
    inner = network.network(network._padded(pixels))
    for name, value in inner.items():
        assert value.shape[-2:] == (96, 96), name


def test_gates_of_the_layers_are_the_decoders():
    network = _opened(_built())
    pixels = _noise(1, 3, 64, 96)
    with torch.inference_mode():
        layers = network.with_layers(pixels)[1]
        decoded = network.network.decoder(network.network.encoder(pixels))
    assert [gate.shape[-1] for gate in decoded.gates] == [6, 12, 24, 48]
    for layer, gate in zip(layers[0], decoded.gates, strict=False):
        expected = F.interpolate(gate, size=(64, 96), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(layer, expected)


def test_without_gates_it_is_the_same_network_with_open_gates():
    gated, plain = _built(), _built(gate="ones")
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in gated.state_dict().items())
    with torch.inference_mode():
        layers = plain.with_layers(_noise(1, 3, 64, 64))[1]
    assert (layers[:, :-1] == 1).all()


def test_gates_of_an_untrained_network_are_nearly_open():
    with torch.inference_mode():
        layers = _built(classes=6).with_layers(_noise(1, 3, 64, 64))[1]
    assert layers[:, :-1].mean() > 0.8


def test_it_learns_everywhere():
    network = _opened(_built()).train()
    output = network(_noise(2, 3, 64, 96))
    sum(value.square().mean() for value in output.values()).backward()
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert torch.count_nonzero(parameter.grad) > 0, name


def test_folding_batch_norm_keeps_the_scores():
    network = _opened(_built())
    network.train()(_noise(2, 3, 96, 96, seed=4))
    network.eval()
    pixels = _noise(1, 3, 64, 64)
    with torch.inference_mode():
        expected = network(pixels)
    folded = fold_batch_norm(network, (1, 3, 64, 64))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.inference_mode():
        torch.testing.assert_close(folded(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "one"}, "no gate of network gsn named 'one'; did you mean ones"),
        ({"decoder_channels": 0}, "decoder_channels of network gsn is 0"),
        ({"decoder_channels": 32.0}, "decoder_channels of network gsn is 32.0"),
        ({"encoder": "resnet19"}, "no encoder named 'resnet19'"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        _built(**options)
    assert "\n" not in str(caught.value)


def _disc(generator):
    """Noise with a brighter disc, its mask, and where its border is within 3 pixels."""
    radius = 16 + 10 * float(torch.rand((), generator=generator))
    row, col = (30 + 36 * torch.rand(2, generator=generator)).tolist()
    rows, cols = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    distance = ((rows - row).square() + (cols - col).square()).sqrt() - radius
    inside = distance < 0
    pixels = torch.randn(3, 96, 96, generator=generator) + 3.0 * inside
    return pixels, inside.long(), distance.abs() <= 3


@pytest.mark.slow
def test_trained_a_little_its_uncertainty_marks_the_border():
    """How sure the network is of the rest after so few steps depends on the seed: measured 1.7, 3.2 and 8.8 times."""
    torch.manual_seed(2)
    network = networks.create("gsn", in_channels=3, num_classes=2, encoder="resnet18", decoder_channels=32).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(7)
    for _ in range(50):
        pixels, labels, _ = (torch.stack(parts) for parts in zip(*(_disc(generator) for _ in range(4)), strict=True))
        output = network(pixels)
        losses = {name: F.cross_entropy(scores, labels) for name, scores in output.items()}
        loss = losses.pop("scores") + 0.4 * sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pixels, labels, border = (torch.stack(parts) for parts in zip(*(_disc(generator) for _ in range(8)), strict=True))
    with torch.inference_mode():
        scores, layers = network.eval().with_layers(pixels)
    assert (scores.argmax(1) == labels).float().mean() > 0.95
    entropy = layers[:, -1]
    assert entropy[border].mean() >= 3 * entropy[~border].mean()
