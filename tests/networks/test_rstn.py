"""The saliency pair: what the fine network sees, what comes out where, and where gradients go."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geoseg.errors import BundleError, ConfigError
from geoseg.networks.rstn import (
    MODES,
    SALIENCY_REACH,
    Saliency,
    SaliencyPair,
    build_pair,
    crop_box,
    drawn_margins,
    enlarged,
    shrunk,
)
from geoseg.networks.rstn_fcn8s import AuthorsFCN8s, authors_pair, enlarging, from_authors

BANDS, TARGETS = 3, 2
SMALL = {"width": 4, "depth": 2}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made(factor=2, **options):
    torch.manual_seed(0)
    plain = {"coarse": "plainconv", "fine": "plainconv", "coarse_options": SMALL, "fine_options": SMALL}
    return build_pair(in_channels=BANDS, targets=TARGETS, factor=factor, **{**plain, **options})


def squares(*corners, count=1, size=(24, 32), side=5):
    """Targets with the first class in a square of each item; None leaves an item empty."""
    target = torch.zeros(count, TARGETS, *size)
    for item, corner in enumerate(corners):
        if corner is not None:
            row, col = corner
            target[item, 0, row : row + side, col : col + side] = 1
    return target


class Remembering(nn.Module):
    """Returns the same logits everywhere, and keeps what it saw."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits or (0.5, -0.5))

    def forward(self, pixels):
        self.seen = pixels
        return self.logits[None, :, None, None].expand(len(pixels), -1, *pixels.shape[-2:])


def test_a_new_pair_is_neutral():
    pair = made()
    pixels, target = noise(2, BANDS, 24, 32), squares((3, 4), (15, 20), count=2)
    assert torch.equal(pair(pixels, torch.rand(2, TARGETS, 24, 32)), pixels)
    plain, weighted = (pair.passes(pixels, target, mode, (4,) * 4) for mode in ("separate", "individual"))
    assert torch.equal(plain.fine, weighted.fine)
    assert float(plain.fine.detach().std()) > 0


def test_weights_reach_as_far_as_is_said():
    torch.manual_seed(2)
    module = Saliency(1, 2)
    nn.init.normal_(module.saliency2.weight)
    nn.init.constant_(module.saliency1.bias, 5.0)  # so that ReLU lets everything through
    probabilities = torch.rand(1, 1, 15, 17, requires_grad=True)
    module.weights(probabilities)[0, :, 7, 8].sum().backward()
    rows, cols = probabilities.grad[0, 0].nonzero().T.tolist()
    assert (min(rows), max(rows)) == (7 - SALIENCY_REACH, 7 + SALIENCY_REACH)
    assert (min(cols), max(cols)) == (8 - SALIENCY_REACH, 8 + SALIENCY_REACH)


def test_each_item_is_answered_in_its_own_box():
    """And alone: a network that sees single pixels says the same of a batch and of each of its items."""
    torch.manual_seed(0)
    pair = SaliencyPair(Remembering(), nn.Conv2d(BANDS, TARGETS, 1), targets=TARGETS, bands=BANDS)
    pixels = noise(3, BANDS, 24, 32)
    boxes = [(2, 9, 3, 11), (12, 24, 20, 32), (0, 24, 0, 32)]
    found = pair.fine_pass(pixels, boxes, torch.rand(3, TARGETS, 24, 32, generator=torch.Generator().manual_seed(0)))
    for item, (row, row_stop, col, col_stop) in enumerate(boxes):
        inside = torch.zeros(24, 32, dtype=torch.bool)
        inside[row:row_stop, col:col_stop] = True
        assert (found[item][:, ~inside] == 0).all()
        assert (found[item][:, inside] > 0).all()
        alone = pair.fine_pass(pixels[item : item + 1], [boxes[item]])
        torch.testing.assert_close(found[item], alone[0])


def test_the_fine_network_sees_one_crop_with_nothing_outside_the_boxes():
    fine = Remembering()
    pair = SaliencyPair(Remembering(), fine, targets=TARGETS, bands=BANDS)
    nn.init.constant_(pair.saliency2.bias, 2.0)
    pixels = noise(2, BANDS, 24, 32)
    pair.fine_pass(pixels, [(2, 9, 3, 11), (5, 20, 8, 30)], torch.zeros(2, TARGETS, 24, 32))
    assert fine.seen.shape == (2, BANDS, 18, 27)
    assert torch.equal(fine.seen[0, :, :7, :8], 2 * pixels[0, :, 2:9, 3:11])
    assert not fine.seen[0, :, 7:].any()
    assert not fine.seen[0, :, :, 8:].any()
    assert torch.equal(fine.seen[1, :, 3:, 5:], 2 * pixels[1, :, 5:20, 8:30])


def test_where_the_box_comes_from():
    pixels, target = noise(3, BANDS, 24, 32), squares((10, 12), None, (3, 20), count=3)
    around = [(8, 17, 10, 19), (0, 24, 0, 32), (1, 10, 18, 27)]
    for mode in ("separate", "individual"):
        found = made().passes(pixels, target, mode, (2,) * 4)
        assert list(found.boxes) == around
    nothing, all_of_it = Remembering(-9.0, -9.0), Remembering(-9.0, 9.0)
    for coarse, boxes in ((nothing, around), (all_of_it, [(0, 24, 0, 32)] * 3)):
        pair = SaliencyPair(coarse, Remembering(), targets=TARGETS, bands=BANDS)
        assert list(pair.passes(pixels, target, "joint", (2,) * 4).boxes) == boxes


def test_margins_of_each_side():
    mask = squares((10, 12))[0] > 0
    assert crop_box(mask, (1, 2, 3, 4)) == (9, 17, 9, 21)
    assert crop_box(mask, (100, 0, 0, 100)) == (0, 15, 12, 32)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_what_a_mode_trains(mode):
    pair = made()
    nn.init.normal_(pair.saliency2.weight, std=0.1)
    found = pair.passes(noise(2, BANDS, 24, 32), squares((3, 4), (15, 20), count=2), mode, (4,) * 4)
    found.fine.square().sum().backward()
    reached = {
        name.split(".")[0] for name, each in pair.named_parameters() if each.grad is not None and each.grad.any()
    }
    # The fine answer trains the coarse network too, through the weights.
    assert reached == ({"fine_model"} if mode == "separate" else set(dict(pair.named_children())))


@pytest.mark.parametrize(("coarse", "fine"), [("unet", "plainconv"), ("plainconv", "icnet"), ("gsn", "linknet")])
def test_any_two_networks(coarse, fine):
    """In training some give further outputs; a crop is of any size."""
    small = {"plainconv": SMALL, "icnet": {}}
    options = [small.get(name, {"encoder": "test_resnet"}) for name in (coarse, fine)]
    pair = made(factor=4, coarse=coarse, fine=fine, coarse_options=options[0], fine_options=options[1])
    pixels, target = noise(2, BANDS, 130, 70), squares((3, 4), (15, 20), count=2, size=(130, 70))
    for training in (True, False):
        found = pair.train(training).passes(pixels, target, "individual", (20,) * 4)
        assert found.coarse_logits.shape == (2, TARGETS, 33, 18)
        assert found.coarse.shape == found.fine.shape == target.shape
        assert torch.isfinite(found.fine).all()
        assert 0 < float(found.fine[..., 10:20, 10:20].detach().min()) < 1


@given(height=st.integers(1, 40), width=st.integers(1, 40), factor=st.integers(1, 5))
def test_small_and_large_again(height, width, factor):
    pixels = noise(1, 2, height, width).double()
    small = shrunk(pixels, factor)
    assert small.shape[-2:] == (-(-height // factor), -(-width // factor))
    row, col = small.shape[-2] - 1, small.shape[-1] - 1
    corner = pixels[..., row * factor :, col * factor :].mean((-2, -1))
    torch.testing.assert_close(small[..., row, col], corner)
    ramp = torch.arange(height, dtype=torch.float64)[:, None] + 3 * torch.arange(width, dtype=torch.float64)
    again = enlarged(shrunk(ramp[None, None], factor), factor, (height, width))[0, 0]
    assert again.shape == ramp.shape
    inner = (slice(factor, max(factor, height - 2 * factor)), slice(factor, max(factor, width - 2 * factor)))
    torch.testing.assert_close(again[inner], ramp[inner])


def test_drawn_margins():
    generator = torch.Generator().manual_seed(0)
    drawn = [drawn_margins(20, 0.5, generator) for _ in range(400)]
    fixed = sum(each == (20, 20, 20, 20) for each in drawn)
    assert 150 < fixed < 250
    for side in range(4):
        values = {each[side] for each in drawn}
        assert values == set(range(41))
    assert {drawn_margins(7, 0.0, generator) for _ in range(20)} == {(7, 7, 7, 7)}
    again = torch.Generator().manual_seed(0)
    assert [drawn_margins(20, 0.5, again) for _ in range(400)] == drawn


def test_refusals():
    pair = made()
    pixels = noise(1, BANDS, 24, 32)
    for call, message in (
        (lambda: made(factor=0), "the factor of a saliency pair is 0"),
        (lambda: made(coarse="unett"), "did you mean"),
        (lambda: pair.passes(pixels, squares((1, 1)), "jiont", (0,) * 4), "did you mean joint"),
        (lambda: pair.passes(pixels, squares((1, 1))[:, :1], "joint", (0,) * 4), r"is \(1, 1, 24, 32\): give \(1, 2"),
        (lambda: pair.fine_pass(pixels, []), "there are 0 boxes for 1 images"),
        (lambda: pair.fine_pass(pixels, [(0, 25, 0, 3)]), "rows 0 to 25 .* leaves the image of 24 × 32"),
        (lambda: pair.fine_pass(pixels, [(4, 4, 0, 3)]), "holds no pixel"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_the_authors_networks_take_any_size():
    """The smallest, and some at which poolings round up on the way."""
    with torch.device("meta"):
        network = AuthorsFCN8s(2).eval()
        for size in ((1, 1), (29, 30), (64, 77)):
            assert network(torch.empty(2, 2, *size)).shape == (2, 2, *size)


def test_the_authors_networks_enlarge_bilinearly_and_go_on_doing_so():
    """The sheet of numbers in their release: 5184 weights of a pair are not trained."""
    with torch.device("meta"):
        pair = authors_pair(3)
    frozen = [name for name, each in pair.named_parameters() if not each.requires_grad]
    assert {name.split(".")[1] for name in frozen} == {"upscore2", "upscore_pool4", "upscore8"}
    assert sum(pair.get_parameter(name).numel() for name in frozen) == 5184
    for size in (4, 16):
        layer = enlarging(2, size)
        flat = layer(torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(1, 2, 6, 7))
        inner = flat[..., size // 2 : -(size // 2), size // 2 : -(size // 2)]
        torch.testing.assert_close(inner, torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand_as(inner))


def test_files_that_hold_no_such_pair_are_refused():
    with torch.device("meta"):
        state = authors_pair(1).state_dict()
        assert from_authors(state)[1] == 1
        for change, message in (
            ({"saliency1.weight": None}, "no saliency1.weight"),
            ({"fine_model.fc6.weight": None}, r"no fine_model.fc6.weight where \(4096, 512, 7, 7\) belongs"),
            ({"fine_model.fc7.bias": torch.empty(7)}, r"fine_model.fc7.bias of shape \(7,\) where \(4096,\) belongs"),
            ({"epoch": torch.empty(1)}, "has epoch, which no pair"),
        ):
            wrong = {name: value for name, value in {**state, **change}.items() if value is not None}
            with pytest.raises(BundleError, match=message):
                from_authors(wrong)
