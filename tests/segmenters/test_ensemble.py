"""Averages over turned tiles and over several segmenters."""

import math
import pickle

import pytest
import torch
from torch import nn

from geoseg import networks
from geoseg.classes import Classes
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.normalisation import Normalisation
from geoseg.segmenters.ensemble import Ensemble, EnsembleState, TestTimeAugmentation
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles, View
from geoseg.segmenters.network import PlainNetwork

CLASSES = Classes.parse("background,road")
SPEC = Spec(("red", "green"), 0.5, CLASSES, tile=32, halo=4, normalisation=Normalisation((0.0, 0.0), (1.0, 1.0)))


def _tiles(side=24, **more):
    pixels = torch.randn(2, 2, side, side, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(2, side, side, dtype=torch.bool)
    valid[1, 3:7, :9] = False
    return Tiles(pixels, valid, (Window(0, 0, side, side),) * 2, **more)


def _segmenter(seed=0, spec=SPEC):
    torch.manual_seed(seed)
    return PlainNetwork(networks.create("plainconv", in_channels=2, num_classes=2).eval(), spec)


def _symmetric():
    """A network whose kernels look alike from all eight sides, so that turning commutes with it."""
    segmenter = _segmenter()
    with torch.no_grad():
        for layer in segmenter.module.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                turned = [torch.rot90(w, k, (-2, -1)) for w in (layer.weight, layer.weight.flip(-1)) for k in range(4)]
                layer.weight.copy_(torch.stack(turned).mean(0))
    return segmenter


def _probabilities(scores, tiles):
    return torch.softmax(scores, 1).masked_fill(~tiles.valid[:, None], 0)


class _Given(Segmenter):
    """Answers the same scores whatever it sees, and notes what it was shown."""

    def __init__(self, scores, spec=SPEC):
        self.scores, self.spec, self.seen, self.device = scores, spec, [], None

    def place(self, device):
        self.device = device

    def prepare(self, scene):
        return State(classes=None if scene is None else scene)

    def segment(self, tiles, state):
        self.seen.append(tiles)
        return self.scores.clone()


@pytest.mark.parametrize("transforms", ["d4", "flips"])
def test_turning_changes_nothing_for_a_symmetric_network(transforms):
    segmenter, tiles = _symmetric(), _tiles()
    with torch.inference_mode():
        expected = segmenter.segment(tiles, State())
        scores = TestTimeAugmentation(segmenter, transforms).segment(tiles, State())
    torch.testing.assert_close(_probabilities(scores, tiles), _probabilities(expected, tiles), rtol=1e-4, atol=1e-5)


def test_turned_input_gives_turned_scores():
    """Whatever the network, the average over all eight commutes with each of them; four do not hold a quarter turn."""
    segmenter, tiles = _segmenter(), _tiles()
    turned = Tiles(torch.rot90(tiles.pixels, 1, (-2, -1)), torch.rot90(tiles.valid, 1, (-2, -1)), tiles.windows)
    with torch.inference_mode():
        for transforms, equal in (("d4", True), ("flips", False)):
            averaged = TestTimeAugmentation(segmenter, transforms)
            one = torch.rot90(averaged.segment(tiles, State()), 1, (-2, -1))
            assert torch.allclose(one, averaged.segment(turned, State()), atol=1e-5) == equal


@pytest.mark.parametrize(("transforms", "count"), [("d4", 8), ("flips", 4)])
def test_every_version_is_seen_once_with_all_that_belongs_to_it(transforms, count):
    spec = Spec(("red", "green"), 0.5, CLASSES, tile=24, halo=4, needs_prior=True)
    plain = _tiles()
    tiles = _tiles(prior=plain.pixels * 2)
    inner = _Given(torch.zeros(2, 2, 24, 24), spec)
    TestTimeAugmentation(inner, transforms).segment(tiles, State())
    assert len({tuple(seen.pixels.flatten().tolist()) for seen in inner.seen}) == count
    for seen in inner.seen:
        assert torch.equal(seen.prior, seen.pixels * 2)
        assert seen.windows == tiles.windows


@pytest.mark.parametrize("wrap", [TestTimeAugmentation, lambda inner: Ensemble([inner])])
def test_scores_stay_finite_whatever_invalid_or_certain_pixels_answer(wrap):
    tiles = _tiles()
    scores = torch.zeros(2, 2, 24, 24)
    scores[:, 0] = 1e9  # so certain that the other class has probability 0
    spoiled = scores.masked_fill(~tiles.valid[:, None], float("nan"))
    averaged = wrap(_Given(spoiled))
    tiles = Tiles(tiles.pixels, torch.zeros_like(tiles.valid), tiles.windows)
    state = averaged.prepare(None)
    assert torch.isfinite(averaged.segment(tiles, state)).all()
    assert torch.isfinite(wrap(_Given(scores)).segment(_tiles(), state)).all()


def test_an_ensemble_of_one_answers_as_its_member():
    segmenter, tiles = _segmenter(), _tiles()
    ensemble = Ensemble([segmenter])
    with torch.inference_mode():
        scores = ensemble.segment(tiles, ensemble.prepare(None))
        expected = segmenter.segment(tiles, State())
    torch.testing.assert_close(_probabilities(scores, tiles), _probabilities(expected, tiles))
    assert ensemble.spec == segmenter.spec


def test_probabilities_are_averaged_by_weight():
    sure = torch.tensor([0.9, 0.1]).log().view(1, 2, 1, 1).expand(2, 2, 24, 24)
    unsure = torch.tensor([0.2, 0.8]).log().view(1, 2, 1, 1).expand(2, 2, 24, 24)
    ensemble = Ensemble([_Given(sure), _Given(unsure)], [3, 1])
    scores = ensemble.segment(_tiles(), ensemble.prepare(None))
    assert torch.softmax(scores, 1)[0, :, 0, 0].tolist() == pytest.approx([0.725, 0.275])


def test_members_are_prepared_and_placed_and_the_state_travels():
    members = [_Given(torch.zeros(2, 2, 24, 24)) for _ in range(2)]
    ensemble = Ensemble(members)
    state = ensemble.prepare(CLASSES)
    assert state == EnsembleState(states=(State(CLASSES), State(CLASSES)))
    assert pickle.loads(pickle.dumps(state)) == state  # noqa: S301 - its own bytes
    ensemble.place(torch.device("cpu"))
    assert [member.device for member in members] == [torch.device("cpu")] * 2
    averaged = TestTimeAugmentation(members[0])
    assert averaged.prepare(CLASSES) == State(CLASSES)
    assert averaged.spec == members[0].spec
    with pytest.raises(ConfigError, match="no state"):
        ensemble.segment(_tiles(), State())


def _spec(**changes):
    return Spec(**{**{name: getattr(SPEC, name) for name in Spec.__dataclass_fields__}, **changes})


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # (tile, halo, stride, exact) of two members, and of both together.
        ((1024, 64, 32, True), (512, 20, 1, True), (1024, 64, 32, True)),
        ((96, 40, 8, True), (96, 12, 12, True), (120, 48, 24, True)),
        ((1024, 64, 32, True), (512, 64, 16, False), (512, 64, 32, False)),
        ((1024, 256, 32, True), (512, 64, 16, False), (544, 256, 32, False)),
    ],
)
def test_sizes_serve_all_members(first, second, expected):
    names = ("tile", "halo", "stride", "tile_exact")
    members = [_Given(torch.zeros(1), _spec(**dict(zip(names, values, strict=True)))) for values in (first, second)]
    spec = Ensemble(members).spec
    assert tuple(getattr(spec, name) for name in names) == expected
    assert spec.tile % spec.stride == spec.halo % spec.stride == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"classes": Classes.parse("background,roof")},
            "has classes 0 background .*1 roof where member 1 has .*1 road",
        ),
        ({"bands": ("red", "nir")}, "has bands red, nir where member 1 has red, green"),
        ({"resolution": None}, "has resolution any where member 1 has 0.5 m"),
        ({"classes": None}, "finds its classes in the scene"),
    ],
)
def test_members_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(ConfigError, match=f"member 2 of the ensemble {message}"):
        Ensemble([_segmenter(), _segmenter(spec=_spec(**change))])


def test_colours_may_differ():
    classes = Classes.parse("background,road:#ff0000")
    assert Ensemble([_segmenter(), _segmenter(spec=_spec(classes=classes))]).spec.classes == CLASSES


def test_views_must_be_of_one_kind():
    views = [_Given(torch.zeros(1), _spec(view=View(extent, 24))) for extent in (48, 96)]
    assert Ensemble([views[0], _segmenter()]).spec.view == View(48, 24)
    with pytest.raises(ConfigError, match="different views"):
        Ensemble(views)


@pytest.mark.parametrize("weights", [[1.0], [1, 0], [1, -1], [1, math.nan]])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ConfigError, match="give 2 positive numbers"):
        Ensemble([_segmenter(), _segmenter()], weights)


def test_other_refusals():
    with pytest.raises(ConfigError, match="at least one member"):
        Ensemble([])
    with pytest.raises(ConfigError, match="no set of transforms named 'd5'; known: d4, flips"):
        TestTimeAugmentation(_segmenter(), "d5")
