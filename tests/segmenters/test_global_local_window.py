"""GLNet on one macro-window, with small networks; the numbers are held to the authors' in tests/golden."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from geoseg.errors import ConfigError
from geoseg.networks.any_size import mirrored
from geoseg.networks.glnet import MODES, build_glnet
from geoseg.networks.patch_grid import patch_grid
from geoseg.normalisation import Normalisation
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.global_local_window import WindowLook, enlarged, overview_of

BANDS, CLASSES = 4, 3
SIZE = (150, 130)
SCALING = Normalisation((10.0, 20.0, 30.0, 40.0), (50.0, 60.0, 70.0, 80.0))
SETTINGS = GlobalLocalSettings(overview=64, patch=64, min_overlap=20, extent=256)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def networks():
    """One of each mode, whose scores are large enough to differ."""
    made = {}
    for mode in MODES:
        torch.manual_seed(3)
        made[mode] = build_glnet(in_channels=BANDS, num_classes=CLASSES, mode=mode, encoder="resnet18").eval()
        for layer in made[mode].modules():
            if isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
                torch.nn.init.kaiming_normal_(layer.weight)
    return made


def image(height=SIZE[0], width=SIZE[1], seed=1):
    coarse = torch.randint(0, 256, (1, BANDS, 9, 8), generator=torch.Generator().manual_seed(seed)).float()
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)[0].to(torch.uint8)


def everywhere(pixels):
    return torch.ones(pixels.shape[1:], dtype=torch.bool)


def look_at(network, pixels, settings=SETTINGS, valid=None, **options):
    with torch.inference_mode():
        look = WindowLook(network, pixels, everywhere(pixels) if valid is None else valid, SCALING, settings)
        return look.scores(**options)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_found(mode, networks):
    found = look_at(networks[mode], image(), local=True)
    assert found.scores.shape == (CLASSES, *SIZE)
    assert found.overview.shape == (1, CLASSES, 16, 16)
    assert torch.equal(found.mean, found.scores / found.count)
    if mode == "global":
        assert found.local is None
        assert torch.equal(found.scores, enlarged(found.overview, SIZE, "nearest")[0])
        assert (found.count == 1).all()
    else:
        assert found.local.shape == found.scores.shape
        assert not torch.equal(found.local, found.scores)
        expected = torch.zeros(SIZE)
        for top, left in patch_grid(SIZE, (64, 64), min_overlap=20).corners:
            expected[top : top + 64, left : left + 64] += 1
        assert torch.equal(found.count, expected)
    assert float(found.mean.std()) > 0.01


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("sub_batch", [2, 5, 100])
def test_batches_and_order_do_not_matter(mode, sub_batch, networks):
    pixels = image()
    expected = look_at(networks[mode], pixels, local=True)
    with torch.inference_mode():
        settings = replace(SETTINGS, sub_batch=sub_batch)
        look = WindowLook(networks[mode], pixels, everywhere(pixels), SCALING, settings)
        order = torch.randperm(len(look.grid.corners), generator=torch.Generator().manual_seed(sub_batch)).tolist()
        found = look.scores([look.grid.corners[i] for i in order], local=True)
    for one, other in ((found.scores, expected.scores), (found.local, expected.local)):
        assert float((one - other).abs().max() / other.abs().max()) <= 1e-5
    assert torch.equal(found.count, expected.count)


@pytest.mark.parametrize("mode", MODES)
def test_bytes_and_numbers_of_the_same_values(mode, networks):
    """But for the overview, which of bytes is rounded."""
    pixels = image()
    found, expected = look_at(networks[mode], pixels.float()), look_at(networks[mode], pixels)
    torch.testing.assert_close(found.mean, expected.mean, rtol=0.05, atol=0.05 * float(expected.mean.abs().max()))


@pytest.mark.parametrize("size", [(40, 150), (150, 64), (20, 30), (1, 1), (64, 64)])
@pytest.mark.parametrize("mode", MODES)
def test_scenes_smaller_than_a_patch_are_mirrored(mode, size, networks):
    pixels = image(*size)
    found = look_at(networks[mode], pixels)
    assert found.scores.shape == (CLASSES, *size)
    mirror = pixels
    for axis, side in ((1, size[0]), (2, size[1])):
        if side < 64:
            mirror = mirror.index_select(axis, mirrored(side, 64, mirror.device))
    expected = look_at(networks[mode], mirror)
    assert torch.equal(found.scores, expected.scores[:, : size[0], : size[1]])
    assert torch.equal(found.count, expected.count[: size[0], : size[1]])


def test_bilinear_scores_have_no_stairs(networks):
    stairs, smooth = (
        look_at(networks["local"], image(64, 64), replace(SETTINGS, enlarging=how)).scores
        for how in ("nearest", "bilinear")
    )
    cells = stairs[:, ::4, ::4]
    assert torch.equal(stairs, cells.repeat_interleave(4, 1).repeat_interleave(4, 2))
    assert torch.equal(smooth, F.interpolate(cells[None], (64, 64), mode="bilinear")[0])


def test_values_where_nothing_is_known_do_not_count(networks):
    pixels = image()
    valid = everywhere(pixels)
    valid[:, 100:] = False
    valid[30:50, 20:60] = False
    pixels = pixels * valid
    values, known = overview_of(pixels, valid, (16, 16))
    assert known[:, :11].all()
    assert not known[:, 14:].any()
    assert not values[:, ~known].any()
    even = torch.where(valid, torch.full_like(pixels, 201), 0)
    assert torch.equal(overview_of(even, valid, (16, 16))[0], known * torch.full((BANDS, 1, 1), 201.0))
    numbers = overview_of(even.float(), valid, (16, 16))[0]
    torch.testing.assert_close(numbers, known * torch.full((BANDS, 1, 1), 201.0))
    found = look_at(networks["collaborative"], pixels, valid=valid)
    assert found.scores.isfinite().all()


class TestCoarseToFine:
    def test_patches_near_foreground_are_chosen(self, networks):
        pixels = image()
        with torch.inference_mode():
            look = WindowLook(networks["local"], pixels, everywhere(pixels), SCALING, SETTINGS)
            look.overview_scores = torch.full((1, CLASSES, 16, 16), -9.0)
            look.overview_scores[:, 1] = 9.0
            assert look.foreground(1, 0.5) == ()
            assert look.foreground(0, 0.5) == look.grid.corners
            look.overview_scores[:, 1, 15, 0] = -9.0  # rows 140 to 150, columns 0 to 8
            expected = {c for c in look.grid.corners if c[0] + 64 + 20 > 140 and c[1] - 20 < 8.2}
            assert set(look.foreground(1, 0.5)) == expected
            assert 0 < len(expected) < len(look.grid.corners)
            assert look.foreground(1, 0.9) == ()  # two thirds at most

    @pytest.mark.parametrize("mode", MODES[1:])
    def test_elsewhere_the_overview_stands(self, mode, networks):
        pixels = image()
        with torch.inference_mode():
            look = WindowLook(networks[mode], pixels, everywhere(pixels), SCALING, SETTINGS)
            corners = look.grid.corners[:2]
            found = look.scores(corners)
            nothing = look.scores(())
        seen = torch.zeros(SIZE, dtype=torch.bool)
        for top, left in corners:
            seen[top : top + 64, left : left + 64] = True
        overview = enlarged(look.overview_scores, SIZE, "nearest")[0]
        assert torch.equal(found.scores[:, ~seen], overview[:, ~seen])
        assert (found.count[~seen] == 1).all()
        assert not torch.equal(found.scores[:, seen], overview[:, seen])
        assert torch.equal(nothing.scores, overview)

    def test_what_is_seen_in_patches_hangs_on_the_patches_alone(self, networks):
        pixels = image()
        with torch.inference_mode():
            look = WindowLook(networks["local"], pixels, everywhere(pixels), SCALING, SETTINGS)
            one = look.scores(look.grid.corners[:1]).scores[:, :64, :64]
            expected = look.scores(look.grid.corners).scores
        only = (slice(None), slice(0, look.grid.tops[1]), slice(0, look.grid.lefts[1]))
        torch.testing.assert_close(one[only], expected[only])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"overview": 62}, "overview of GLNet is 62: give a multiple of 4"),
        ({"patch": 28, "extent": 100}, "patch of GLNet is 28: give a multiple of 4, 32 or more"),
        ({"patch": 0}, "patch of GLNet is 0"),
        ({"sub_batch": 0}, "sub_batch of GLNet is 0"),
        ({"sub_batch": True}, "sub_batch of GLNet is True"),
        ({"overview": 64.0}, "overview of GLNet is 64.0"),
        ({"min_overlap": 64}, "patches of 64 pixels cannot share 64"),
        ({"min_overlap": -1}, "min_overlap of GLNet is -1"),
        ({"extent": 127}, "is 127 pixels: give 2 to 10 times the patch, 128 to 640"),
        ({"extent": 641}, "is 641 pixels: give 2 to 10 times the patch, 128 to 640"),
        ({"enlarging": "cubic"}, "no enlarging of GLNet's scores named 'cubic'"),
        ({"coarse_to_fine": 1.0}, "coarse_to_fine of GLNet is 1.0"),
    ],
)
def test_refused_settings(changes, told):
    with pytest.raises(ConfigError, match=told):
        replace(SETTINGS, **changes)


def test_settings_as_published():
    assert GlobalLocalSettings() == GlobalLocalSettings(overview=508, patch=508, min_overlap=50, extent=2448)
    assert GlobalLocalSettings(min_overlap=0).min_overlap == 0


_PEAK = """
import resource, sys, torch
from geoseg.networks.glnet import build_glnet
from geoseg.normalisation import Normalisation
from geoseg.segmenters.global_local_settings import GlobalLocalSettings
from geoseg.segmenters.global_local_window import WindowLook

torch.set_num_threads(1)
network = build_glnet(in_channels=3, num_classes=3, mode="collaborative", encoder="mobilenetv3_small_100").eval()
settings = GlobalLocalSettings(overview=256, patch=256, extent=1024)
peaks = []
for side in (256, 800):
    pixels = torch.zeros(3, side, side, dtype=torch.uint8)
    with torch.inference_mode():
        look = WindowLook(network, pixels, pixels[0] == 0, Normalisation((0.0,) * 3, (255.0,) * 3), settings)
        look.scores()
    peaks += [len(look.grid.corners), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024]
print(*peaks)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_patches():
    """But by the answer itself, of some 10 MB here.  The last maps of a patch, if kept, would take 8 MB each."""
    told = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True).stdout
    few, before, many, after = map(int, told.split())
    assert (few, many) == (1, 16)
    assert after - before < 50
