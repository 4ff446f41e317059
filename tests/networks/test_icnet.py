"""ICNet: published counts, sizes, the pyramid and its scene; its numbers are held to the authors' in tests/golden."""

import importlib.util
from pathlib import Path

import pytest
import timm.models._builder
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from geoseg import networks
from geoseg.errors import ConfigError
from geoseg.losses.cascade import CascadeLoss
from geoseg.networks.icnet import AUXILIARY, PrunedICNet, SizedICNet, build_icnet
from geoseg.networks.icnet_blocks import Pyramid, lattice, resized
from geoseg.networks.inference import fold_batch_norm
from geoseg.networks.scene_pooling import ScenePyramid

_FILLER = Path(__file__).parents[1] / "data" / "reference" / "fill_weights.py"
GRAPHS = ({}, {"encoder": "resnet18"})


@pytest.fixture(scope="module")
def filled():
    """The pruned graph for three bands with the references' weights, and their input by size."""
    spec = importlib.util.spec_from_file_location("fill_weights", _FILLER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = build_icnet(in_channels=3, num_classes=19)
    module.fill_weights(network, 0, lambda name: name.removeprefix("network.").replace("_bn.", "/bn."))
    return network, lambda *size: module.golden_input((1, 3, *size), 0)


def on_paper(**options):
    """A network without numbers, to count on."""
    with torch.device("meta"):
        return build_icnet(in_channels=3, num_classes=19, **options).network.eval()


def made(seed=0, in_channels=3, num_classes=4, **options):
    torch.manual_seed(seed)
    return build_icnet(in_channels=in_channels, num_classes=num_classes, **options).eval()


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def multiplications(network, size):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() // 2


def deployed(network):
    """Parameters without the heads of training."""
    return parameters(network) - parameters(network.conv6_sub4) - parameters(network.conv6_sub2)


def test_parameters_of_the_pruned_graph():
    network = on_paper()
    assert parameters(network) == 6_707_321
    assert deployed(network) == 6_699_987
    scales = sum(2 * layer.num_features for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d))
    convolutions = sum(layer.out_channels for layer in network.modules() if isinstance(layer, torch.nn.Conv2d))
    merged = deployed(network) - scales + convolutions - 3 * 19
    assert merged == 6_685_715
    assert deployed(on_paper(widening=2)) == 26_734_483


@pytest.mark.parametrize(
    ("encoder", "count"), [("resnet50s", 26_249_376), ("resnet101s", 45_241_504), ("resnet152s", 60_885_152)]
)
def test_parameters_on_a_resnet(encoder, count):
    assert parameters(on_paper(encoder=encoder)) == count


def test_multiplications():
    network = on_paper()
    assert multiplications(network, (257, 321)) == 1_286_133_312
    giga = {1025: 29.812, 769: 8.559, 513: 3.894, 257: 1.043}
    for height, expected in giga.items():
        width = 2049 if height == 1025 else height
        assert round(multiplications(network, (height, width)) / 1e9, 3) == expected
    assert round(multiplications(on_paper(widening=2), (1025, 2049)) / 1e9, 1) == 117.5
    # The port counts 9.204 and 294.52: it also runs the halved image through the last two stages, to no end.
    assert multiplications(on_paper(graph="resnet"), (256, 256)) == 3_563_520_000


def test_multiplications_by_part():
    network = on_paper()
    shares = dict.fromkeys(("fine", "halved", "trunk", "fusion"), 0)
    parts = {"conv1_sub1": "fine", "conv2_sub1": "fine", "conv3_sub1": "fine", "conv5_4_k1": "trunk"}
    halved = ("conv1_", "conv2_", "conv3_1_1x1", "conv3_1_3x3")
    for name, layer in network.named_modules():
        if not isinstance(layer, torch.nn.Conv2d):
            continue
        part = parts.get(name) or ("halved" if name.startswith(halved) else "trunk")
        if name.startswith(("conv_sub", "conv6_")) or name in ("conv3_1_sub2_proj", "conv3_sub1_proj"):
            part = "fusion"

        def count(layer, inputs, output, part=part):
            shares[part] += output[0].numel() * layer.weight[0].numel()

        layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.empty(1, 3, 1025, 2049, device="meta"))
    assert {part: round(count / 1e9, 2) for part, count in shares.items()} == {
        "fine": 2.28,
        "halved": 6.48,
        "trunk": 12.82,
        "fusion": 8.23,
    }


def test_sizes_inside():
    """The table of the graph's sizes, for an input of 1025 × 2049 pixels."""
    network = on_paper()
    sizes = {}
    for name in ("conv1_3_3x3", "conv2_3_1x1_increase", "conv3_1_1x1_increase", "conv3_4_1x1_increase", "conv5_4_k1"):
        getattr(network, name).register_forward_hook(
            lambda layer, inputs, output, name=name: sizes.update({name: tuple(output.shape[1:])})
        )
    for name in ("conv_sub4", "conv3_sub1", "conv_sub2", "conv6_cls"):
        getattr(network, name).register_forward_hook(
            lambda layer, inputs, output, name=name: sizes.update({name: tuple(output.shape[1:])})
        )
    with torch.no_grad():
        assert network(torch.empty(1, 3, 1025, 2049, device="meta")).shape == (1, 19, 1025, 2049)
    assert sizes == {
        "conv1_3_3x3": (64, 257, 513),
        "conv2_3_1x1_increase": (128, 129, 257),
        "conv3_1_1x1_increase": (256, 65, 129),
        "conv3_4_1x1_increase": (256, 33, 65),
        "conv5_4_k1": (256, 33, 65),
        "conv_sub4": (128, 65, 129),
        "conv3_sub1": (64, 129, 257),
        "conv_sub2": (128, 129, 257),
        "conv6_cls": (19, 257, 513),
    }


@pytest.mark.parametrize("options", GRAPHS)
def test_the_network_itself_takes_any_size(options):
    network = made(**options).network
    with torch.no_grad():
        for size in [(225, 257), (256, 256), (65, 97), (31, 50), (1, 1)]:
            scores = network(noise(1, 3, *size))
            assert scores.shape == (1, 4, *size)
            assert torch.isfinite(scores).all()


@pytest.mark.parametrize("options", GRAPHS)
@pytest.mark.parametrize(("bands", "classes", "size"), [(1, 2, (1, 1)), (13, 20, (45, 70)), (4, 6, (64, 96))])
def test_bands_classes_and_sizes(bands, classes, size, options):
    network = made(in_channels=bands, num_classes=classes, **options)
    pixels = noise(2, bands, *size)
    with torch.no_grad():
        scores, alone = network(pixels), network(pixels[1:])
    assert scores.shape == (2, classes, *size)
    torch.testing.assert_close(scores[1:], alone, rtol=1e-4, atol=1e-5)


def test_halving_takes_every_second_pixel():
    pixels = noise(1, 3, 97, 65)
    assert torch.equal(resized(pixels, lattice((97, 65), 2)), pixels[..., ::2, ::2])
    assert torch.equal(resized(pixels, lattice((97, 65), 4)), pixels[..., ::4, ::4])


def test_inputs_are_mirrored_to_the_lattice():
    network = made()
    seen = []
    network.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    pixels = noise(1, 3, 64, 70)
    network(pixels)
    assert torch.equal(seen[0], F.pad(pixels, (0, 27, 0, 1), mode="reflect"))
    network(noise(1, 3, 65, 97))
    assert seen[1].shape == (1, 3, 65, 97)
    network(noise(1, 3, 5, 33))
    assert seen[2].shape == (1, 3, 33, 33)


@pytest.mark.parametrize("size", [(33, 65), (6, 6), (2, 3), (1, 1)])
def test_the_pyramid_of_a_constant_is_five_times_it(size):
    pyramid = Pyramid()
    assert not list(pyramid.parameters())
    torch.testing.assert_close(pyramid(torch.full((2, 3, *size), 1.5)), torch.full((2, 3, *size), 7.5))


def test_the_authors_kernels():
    features = noise(1, 2, 33, 65)
    authors, adaptive = Pyramid("authors"), Pyramid()
    torch.testing.assert_close(authors(torch.ones(1, 1, 33, 65)), torch.full((1, 1, 33, 65), 5.0))
    for bins in (1, 2):
        torch.testing.assert_close(authors._pooled(features, bins), adaptive._pooled(features, bins))
    for bins in (3, 6):
        assert authors._pooled(features, bins).shape == adaptive._pooled(features, bins).shape
        assert (authors._pooled(features, bins) - adaptive._pooled(features, bins)).abs().max() > 0.01
    with pytest.raises(ConfigError, match=r"inputs of 1025 × 2049 pixels .* has 33 × 64 cells: use pool 'adaptive'"):
        authors(features[..., :64])


@pytest.mark.parametrize("options", GRAPHS)
@pytest.mark.parametrize("size", [(65, 97), (64, 90)])
def test_training_gives_three_more_maps(options, size):
    network = made(**options).train()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight") and not parameter.any():
                parameter.fill_(1.0)  # ResNets start with their branches shut
    output = network(noise(1, 3, *size))
    assert tuple(output) == ("scores", *networks.info("icnet").auxiliary) == ("scores", *AUXILIARY)
    assert output["scores"].shape == (1, 4, *size)
    for name, stride in AUXILIARY.items():
        assert output[name].shape == (1, 4, -(-size[0] // stride), -(-size[1] // stride))
    CascadeLoss()(output, torch.randint(0, 4, (1, *size))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_coarse_maps_stand_at_every_sth_pixel():
    """At sizes of the lattice, scores grow out of those at stride 4, which keep their places."""
    network = made().train()
    with torch.no_grad():
        output = network(noise(1, 3, 65, 97))
        torch.testing.assert_close(output["scores"][..., ::4, ::4], output["scores_4"])
        # A larger input of which this is the beginning has the same lattice.
        assert network(noise(1, 3, 66, 97))["scores_16"].shape[2:] == (5, 7)


def test_heads_of_training_rest_in_evaluation():
    for options in GRAPHS:
        network = made(**options)
        heads = ("conv6_sub4", "conv6_sub2", "conv_low_cls")
        for name, layer in network.named_modules():
            if name.endswith(heads):
                layer.register_forward_hook(lambda *_: pytest.fail("a head of training has run"))
        with torch.no_grad():
            assert isinstance(network(noise(1, 3, 33, 33)), torch.Tensor)


def test_strides_stand_where_the_graph_has_them():
    network = PrunedICNet(3, 2)
    strided = {name for name, layer in network.named_modules() if getattr(layer, "stride", 1) == (2, 2)}
    fine = {"conv1_sub1", "conv2_sub1", "conv3_sub1"}
    assert strided == {"conv1_1_3x3_s2", "conv3_1_1x1_reduce", "conv3_1_1x1_proj", *fine}


def test_facts_and_defaults():
    info = networks.info("icnet")
    network = networks.create("icnet", in_channels=5, num_classes=3)
    assert isinstance(network, SizedICNet)
    assert isinstance(network.network, PrunedICNet)
    assert (network.stride, network.min_size) == (info.stride, info.min_size) == (32, 32)
    assert not info.tile_exact
    assert network.network.conv1_1_3x3_s2.weight.shape == (32, 5, 3, 3)
    assert all(name.startswith("network.") for name in network.state_dict())


@pytest.mark.parametrize("options", GRAPHS)
def test_pooling_is_no_matter_of_weights(options):
    network, other = made(**options), made(pooling="scene", **options)
    assert (network.pooling, other.pooling) == ("tile", "scene")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in network.state_dict().items())
    for size in [(1, 1), (33, 64), (100, 224)]:
        pixels = noise(1, 3, *size)
        with torch.no_grad():
            assert torch.equal(network(pixels), other(pixels))
            coarse = network.coarse(pixels)
            assert torch.equal(coarse, network.network.coarse(network._padded(pixels))[1])
        assert network.cells(size) == coarse.shape[2:]


def test_equal_seeds_give_equal_weights():
    for options in GRAPHS:
        first, second, other = (made(seed, **options).state_dict() for seed in (3, 3, 4))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("options", GRAPHS)
def test_half_precision_and_merged_batch_norm(options):
    network = made(**options)
    pixels = noise(1, 3, 64, 97)
    with torch.no_grad():
        scores = network(pixels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (network(pixels).float() - scores).abs().max() < 0.1 * scores.std()
        folded = fold_batch_norm(made(**options), (1, 3, 64, 64))
        assert len(list(folded.modules())) == len(list(network.modules()))
        assert sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in folded.modules()) < sum(
            isinstance(layer, torch.nn.BatchNorm2d) for layer in network.modules()
        )
        torch.testing.assert_close(folded(pixels), scores, rtol=1e-3, atol=1e-4)
        assert torch.isfinite(network.bfloat16()(pixels.bfloat16()).float()).all()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("options", GRAPHS)
def test_tracing(options):
    network = made(**options)
    pixels = noise(1, 3, 64, 97)
    with torch.no_grad():
        traced = torch.jit.trace(network, pixels, check_trace=False)
        torch.testing.assert_close(traced(2 * pixels), network(2 * pixels))


@pytest.mark.slow
@pytest.mark.parametrize("options", GRAPHS)
def test_export(options):
    network = made(**options)
    pixels = noise(1, 3, 64, 97)
    with torch.no_grad():
        exported = torch.export.export(network, (pixels,)).module()
        torch.testing.assert_close(exported(2 * pixels), network(2 * pixels))


def test_pretrained_weights_are_adapted_to_the_bands(monkeypatch):
    asked = []
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda model, **more: asked.append(more["in_chans"]))
    networks.create("icnet", in_channels=5, num_classes=2, encoder="resnet18", pretrained=True)
    assert asked == [5]


def test_graph_and_encoder_go_together():
    assert len(made(graph="resnet").network.backbone["layer4"]) == 3
    assert isinstance(made(graph="pruned").network, PrunedICNet)
    # As a bundle asks for it: the default encoder and the option beside it.
    assert "backbone" in dict(made(encoder="pruned", graph="resnet").network.named_children())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graph": "prune"}, "no graph of network icnet named 'prune'; did you mean pruned"),
        ({"pooling": "world"}, "no pooling of network icnet named 'world'"),
        ({"pool": "authors", "pooling": "scene"}, "made for one size of input"),
        ({"pool": "caffe"}, "no pool of network icnet named 'caffe'"),
        ({"widening": 3}, "widening of network icnet is 3"),
        ({"widening": 2, "graph": "resnet"}, "widening of network icnet is 2 in graph resnet"),
        ({"pretrained": True}, "no pretrained weights"),
        ({"graph": "pruned", "encoder": "resnet18"}, "trunk of its own"),
        ({"encoder": "resnet19"}, "no encoder named 'resnet19'"),
        ({"encoder": "hrnet_w18"}, "encoder hrnet_w18"),
        ({"encoder": "vgg11"}, "encoder vgg11"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        networks.create("icnet", in_channels=3, num_classes=2, **options)


@pytest.mark.parametrize("options", GRAPHS)
def test_scores_with_the_means_of_the_whole_are_those_of_one_pass(options):
    network = made(**options)
    pixels = noise(1, 3, 100, 224)
    with torch.no_grad():
        coarse = network.coarse(pixels)
        assert coarse.shape == (1, network.network.coarse_channels, 5, 8)
        scene = ScenePyramid(coarse.shape[1], coarse.shape[2:])
        scene.add(coarse[0, :, :3], 0, 0)
        scene.add(coarse[0, :, 3:], 3, 0)
        found = network(pixels, scene.means().crop(0, 0, tuple(coarse.shape[2:]))[None])
        whole = network(pixels)
        other = network(pixels, torch.zeros(1, coarse.shape[1], 1, 1))
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5)
    assert (other - whole).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "start", "halo", "alone", "together"),
    [(1537, 704, 64, 0.44, 0.11), (1537, 704, 256, 0.073, 0.020), (2305, 1088, 1024, 1.7e-3, 0.0)],
)
def test_tiles_with_the_means_of_the_scene(filled, side, start, halo, alone, together):
    """Relative difference of a core of 129 pixels from one pass; measured on the authors' graph."""
    network, image = filled
    scene = image(side, side)
    rows = slice(start - halo, start + 129 + halo)
    core = slice(start, start + 129)
    cells = (129 + 2 * halo - 1) // 32 + 1
    with torch.no_grad():
        expected = network(scene)[..., core, core]
        coarse = network.coarse(scene)
        pyramid = ScenePyramid(coarse.shape[1], coarse.shape[2:])
        pyramid.add(coarse[0], 0, 0)
        context = pyramid.means().crop(rows.start // 32, rows.start // 32, (cells, cells))[None]

        def error(context):
            found = network(scene[..., rows, rows], context)[..., halo : halo + 129, halo : halo + 129]
            assert context is None or torch.equal(found.argmax(1), expected.argmax(1))
            return float((found - expected).norm() / expected.norm())

        assert error(None) == pytest.approx(alone, rel=0.03)
        assert error(context) == pytest.approx(together, rel=0.03, abs=1e-6)
