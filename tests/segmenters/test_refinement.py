"""Refinement of one mask: what the network is shown, how its answers are put together, and what needs no network."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from geoseg import networks
from geoseg.bundle import read_bundle, write_bundle
from geoseg.classes import Classes
from geoseg.errors import BundleError, ConfigError
from geoseg.normalisation import Normalisation
from geoseg.segmenters.network import new_bundle
from geoseg.segmenters.refinement import Refiner, assembled, closer_look, crops, first_look, refined, rough_mask
from geoseg.segmenters.refinement_settings import EDGE, RefinementSettings

SMALL = {"encoder": "test_resnet", "width": 0.02}
SCALING = Normalisation((100.0,) * 3, (50.0,) * 3)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Told(nn.Module):
    """In place of the network: the image's first band is the answer, the second that at stride 4."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))
        self.calls = []

    def forward(self, image, mask, *known):
        self.calls.append((image, mask, *known))
        return {"out_224": image[:, :1], "out_56_2": image[:, 1:2]}


@pytest.fixture(scope="module")
def network():
    """A small network that depends on everything it is shown."""
    torch.manual_seed(0)
    module = networks.create("cascadepsp", in_channels=3, num_classes=2, **SMALL)
    with torch.no_grad():
        first = next(layer for layer in module.feats.modules() if isinstance(layer, nn.Conv2d))
        first.weight.normal_()
        module.train()(torch.randn(2, 3, 64, 64), torch.randn(2, 1, 64, 64).sign())
    return module.eval()


def image_of(height, width, seed=1):
    return 2 * torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


def square(height, width):
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2 + 1, width // 3 : width // 2 + 1] = True
    return mask


def chequered(height, width, side=5):
    return np.add.outer(np.arange(height) // side, np.arange(width) // side) % 2 > 0


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), side=st.integers(80, 200))
def test_crops_put_together_are_the_whole(height, width, side):
    given = RefinementSettings(side=side)
    decided = chequered(height, width, side=1)
    assume(min(height, width, side) > 1)
    windows = crops(decided, given)
    assert len(set(windows)) == len(windows)
    assert {window.shape for window in windows} == {(min(side, height), min(side, width))}
    truth = np.random.default_rng(0).random((height, width), np.float32)
    parts = [(each, truth[each.row : each.row_stop, each.col : each.col_stop]) for each in windows]
    np.testing.assert_allclose(assembled(parts, decided), truth, atol=1e-6)
    # Margins within the image have no part in it.
    spoilt = [(window, np.where(_inner(window, height, width), part, 9)) for window, part in parts]
    np.testing.assert_allclose(assembled(spoilt, decided), truth, atol=1e-6)


def _inner(window, height, width):
    inner = np.zeros(window.shape, bool)
    rows = slice(EDGE if window.row else 0, window.height - (0 if window.row_stop == height else EDGE))
    cols = slice(EDGE if window.col else 0, window.width - (0 if window.col_stop == width else EDGE))
    inner[rows, cols] = True
    return inner


def test_the_order_of_crops_does_not_matter(network):
    image, mask = image_of(150, 190), square(150, 190)
    given = RefinementSettings(side=80)
    _, quarter = first_look(network, image, mask, given)
    soft = nn.functional.interpolate(quarter[None, None], mask.shape, mode="bilinear")[0, 0]
    decided = chequered(*mask.shape)
    answers = [(window, closer_look(network, image, decided, soft, window)) for window in crops(decided, given)]
    assert len(answers) > 5
    expected = assembled(answers, decided)
    for seed in range(4):
        mixed = [answers[i] for i in np.random.default_rng(seed).permutation(len(answers))]
        assert np.array_equal(assembled(mixed, decided), expected)


def test_an_empty_mask_stays_empty_unseen():
    told = Told()
    found = refined(told, image_of(50, 70), np.zeros((50, 70), bool), RefinementSettings())
    assert not found.any()
    assert found.dtype == np.float32
    assert not told.calls


@pytest.mark.parametrize("answer", [-4.0, 4.0])
def test_a_plain_first_answer_is_not_looked_at_again(answer):
    told = Told()
    found = refined(told, torch.full((3, 90, 130), answer), square(90, 130), RefinementSettings(side=80))
    assert len(told.calls) == 1
    assert (found == (answer > 0)).all()


@pytest.mark.parametrize(
    ("size", "given", "seen"),
    [
        ((150, 190), {"side": 100}, (80, 104)),  # 78 × 100
        ((150, 190), {"side": 190}, (152, 192)),
        ((150, 190), {"side": 224}, (184, 224)),  # 176 × 223
        ((150, 190), {"side": 224, "enlarge_to": 0}, (152, 192)),
        ((150, 190), {"side": 224, "enlarge_to": 200}, (160, 208)),  # 157 × 200
        ((64, 60), {"side": 80, "enlarge_to": 0}, (72, 64)),
        ((64, 80), {"side": 80}, (64, 80)),
        ((1, 2000), {"side": 100}, (8, 104)),
    ],
)
def test_what_the_network_is_shown_first(size, given, seen):
    told = Told()
    refined(told, image_of(*size), square(*size), RefinementSettings(fast=True, **given))
    ((image, mask),) = told.calls
    assert image.shape[-2:] == mask.shape[-2:] == seen
    assert mask.abs().max() <= 1 + 1e-6


def test_beyond_the_image_there_is_neither_image_nor_mask():
    told = Told()
    once = RefinementSettings(side=80, enlarge_to=0, fast=True)
    found = refined(told, image_of(61, 70), np.ones((61, 70), bool), once)
    ((image, mask),) = told.calls
    for values, fill in ((image, 0), (mask, -1)):
        assert (values[..., 61:, :] == fill).all()
        assert (values[..., 70:] == fill).all()
    assert (mask[..., :61, :70] == 1).all()
    torch.testing.assert_close(torch.from_numpy(found), image_of(61, 70)[0].sigmoid())


def test_crops_see_the_answer_of_the_first_look_and_no_more_of_the_rough_mask():
    told = Told()
    image = image_of(90, 130)
    refined(told, image, square(90, 130), RefinementSettings(side=130))
    (_, (seen, mask, known)) = told.calls
    torch.testing.assert_close(seen[0, :, :90, :130], image)
    assert torch.equal(mask[0, 0, :90, :130], torch.where(image[0] > 0, 1.0, -1.0))
    torch.testing.assert_close(known[0, 0, :90, :130], image[1].sigmoid() * 2 - 1)


def test_without_data_there_is_no_mask_in_any_look():
    told = Told()
    image, valid = torch.full((3, 90, 130), 3.0), np.ones((90, 130), bool)
    valid[:, 100:] = False
    found = refined(told, image, np.ones((90, 130), bool), RefinementSettings(side=130), valid)
    (first, (_, mask, known)) = told.calls
    for shown in (first[1], mask, known):
        assert (shown[..., :90, 100:130] == -1).all()
        assert (shown[..., :90, :100] > 0).all()
    assert (found[:, :100] > 0.9).all()
    assert not found[:, 100:].any()


def test_shares_outside_the_bounds_are_left_out():
    decided = np.zeros((100, 300), bool)
    decided[:, :20] = True
    decided[:3, 250:] = True
    every, as_published = (
        crops(decided, RefinementSettings(side=100, skip_below=least, skip_above=1 - least)) for least in (0.0, 0.1)
    )
    shares = [decided[:, each.col : each.col_stop].mean() for each in every]
    assert min(shares) < 0.1 < max(shares)
    assert as_published == [window for window, share in zip(every, shares, strict=True) if share >= 0.1]
    assert all(each.col < 20 or each.col_stop > 250 for each in every)
    turned = crops(~decided, RefinementSettings(side=100, skip_above=0.9))
    assert turned == as_published


def test_masks_of_bytes_and_probabilities():
    mask = square(40, 50)
    for high in (255, 200, 128):
        assert np.array_equal(rough_mask(mask.astype(np.uint8) * high), mask)
    assert not rough_mask(mask.astype(np.uint8) * 127).any()
    assert np.array_equal(rough_mask(mask * 0.51), mask)
    assert not rough_mask(mask * np.float32(0.5)).any()
    assert rough_mask(mask) is mask
    with pytest.raises(ConfigError, match="a rough mask is of int32"):
        rough_mask(mask.astype(np.int32))


def test_without_data_there_is_nothing_and_values_there_do_not_matter(network):
    refiner = Refiner(network, SCALING, RefinementSettings(side=80))
    random = np.random.default_rng(5)
    pixels, valid = random.integers(0, 255, (3, 90, 70), np.uint8), np.ones((90, 70), bool)
    valid[10:30, 20:60] = False
    prior = square(90, 70).astype(np.uint8) * 255
    found = refiner.refine(pixels, valid, prior)
    assert (found[~valid] == 0).all()
    assert 0 < found[valid].mean() < 1
    other = np.where(valid, pixels, 255 - pixels)
    assert np.array_equal(refiner.refine(other, valid, np.where(valid, prior, 255 - prior)), found)
    assert not np.array_equal(refiner.refine(pixels, valid, prior, RefinementSettings(side=80, fast=True)), found)
    with pytest.raises(ConfigError, match=r"are \(3, 90, 70\), \(90, 70\) and \(70, 90\)"):
        refiner.refine(pixels, valid, prior.T)


def test_bundles(tmp_path):
    def bundle(name, network, **options):
        path = tmp_path / name
        classes = Classes.parse("background,roof")
        write_bundle(path, *new_bundle(network, bands=["r", "g", "b"], classes=classes, **options))
        return read_bundle(path)

    found = bundle("refiner", "cascadepsp", tile=320, encoder="test_resnet", options={"width": 0.02})
    refiner = Refiner.from_bundle(found, SCALING)
    assert refiner.settings == RefinementSettings(side=320)
    refiner.place(torch.device("cpu"))
    pixels, mask = np.full((3, 40, 50), 90, np.uint8), square(40, 50)
    assert refiner.refine(pixels, np.ones_like(mask), mask).shape == mask.shape
    with pytest.raises(ConfigError, match="does not scale its bands"):
        Refiner.from_bundle(found)
    with pytest.raises(BundleError, match="holds a network model, which refines nothing"):
        Refiner.from_bundle(bundle("network", "plainconv"), SCALING)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"side": 79}, "side of a refinement is 79: give a whole number of 80 or more"),
        ({"side": 100.0}, "side of a refinement is 100.0"),
        ({"enlarge_to": -1}, "enlarge_to of a refinement is -1"),
        ({"side": 100, "enlarge_to": 101}, "give at most side, which is 100"),
        ({"skip_below": 0.6, "skip_above": 0.4}, "are 0.6 and 0.4"),
        ({"skip_above": 1.5}, "are 0.0 and 1.5"),
    ],
)
def test_settings_that_are_refused(changed, message):
    with pytest.raises(ConfigError, match=message):
        RefinementSettings(**changed)
