"""The pyramid of a scene: gathered in parts, read out anywhere, and a network that is given it."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geoseg.errors import ConfigError
from geoseg.networks.any_size import mirrored
from geoseg.networks.icnet_blocks import BINS, Pyramid, resized
from geoseg.networks.pictures import scene_like
from geoseg.networks.receptive_field import exact_halo
from geoseg.networks.scene_pooling import ScenePyramid, context_of, held, means_of, parts, pools_over_scene
from geoseg.networks.tiling import choose_halo, compare


class Small(nn.Module):
    """Scores of a fine convolution and of a pooled map, one cell every 8 pixels; reaches 16 pixels or less."""

    stride, coarse_channels = 8, 2

    def __init__(self, bands=3, classes=3, pooling="scene", seed=0):
        super().__init__()
        self.pooling = pooling
        self.fine = nn.Conv2d(bands, classes, 3, padding=1)
        self.deep = nn.Conv2d(bands, self.coarse_channels, 3, padding=1)
        self.head = nn.Conv2d(self.coarse_channels, classes, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def cells(self, shape):
        return tuple(-(-(size - 1) // 8) + 1 for size in shape)

    def coarse(self, pixels):
        for axis, count in zip((2, 3), self.cells(pixels.shape[2:]), strict=True):
            pixels = pixels.index_select(axis, mirrored(pixels.shape[axis], 8 * (count - 1) + 1, pixels.device))
        return self.deep(pixels[..., ::8, ::8])

    def forward(self, pixels, context=None):
        coarse = self.coarse(pixels)
        coarse = Pyramid()(coarse) if context is None else coarse + context
        size = [8 * (count - 1) + 1 for count in coarse.shape[2:]]
        return self.fine(pixels) + self.head(resized(coarse, size)[..., : pixels.shape[2], : pixels.shape[3]])


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gathered(features, height=4, width=3, weights=None):
    pyramid = ScenePyramid(len(features), tuple(features.shape[1:]))
    for row in range(0, features.shape[1], height):
        for col in range(0, features.shape[2], width):
            place = (slice(row, row + height), slice(col, col + width))
            pyramid.add(features[:, *place], row, col, None if weights is None else weights[place])
    return pyramid.means()


@pytest.mark.parametrize("shape", [(13, 9), (6, 6), (5, 40), (2, 3), (1, 1)])
def test_the_pyramid_of_a_scene_is_that_of_one_pass(shape):
    features = noise(1, 3, *shape)
    whole = Pyramid()(features)[0]
    means = gathered(features[0])
    torch.testing.assert_close(features[0] + means.crop(0, 0, shape), whole)
    row, col = shape[0] // 2, shape[1] // 3
    part = means.crop(row, col, (2, 3))
    for i in range(2):
        for j in range(3):
            at = (slice(None), min(row + i, shape[0] - 1), min(col + j, shape[1] - 1))
            torch.testing.assert_close(part[:, i, j], whole[at] - features[0][at])
    assert torch.equal(means.crop(-2, -1, (2, 1)), means.crop(0, 0, (1, 1)).expand(-1, 2, 1))


def test_cells_count_by_their_weights():
    features, weights = noise(2, 12, 18), noise(12, 18, seed=3).clamp(0, 1)
    weights[:2, :3] = 0
    features[:, weights == 0] = float("nan")
    values = torch.from_numpy(gathered(features, weights=weights).values)
    known = features.nan_to_num()
    expected = []
    for bins in BINS:
        down, across = 12 // bins, 18 // bins
        for row in range(0, 12, down):
            for col in range(0, 18, across):
                part = weights[row : row + down, col : col + across]
                some = part if part.any() else weights
                taken = known[:, row : row + down, col : col + across] if part.any() else known
                expected.append((taken * some).sum((1, 2)) / some.sum())
    assert not weights[:2, :3].any()  # the first of 36 bins is empty
    torch.testing.assert_close(values, torch.stack(expected, 1))


def test_a_scene_takes_each_cell_once():
    pyramid = ScenePyramid(1, (4, 4))
    with pytest.raises(ConfigError, match="3 × 4 cells at 2, 0 do not belong to a scene of 4 × 4"):
        pyramid.add(torch.ones(1, 3, 4), 2, 0)
    pyramid = ScenePyramid(1, (4, 4))
    pyramid.add(torch.ones(1, 4, 3), 0, 0)
    with pytest.raises(ConfigError, match="4 cells of the scene are missing"):
        pyramid.means()
    with pytest.raises(ConfigError, match="were given before"):
        pyramid.skip(0, 0, (4, 3))
    empty = ScenePyramid(1, (2, 2))
    empty.skip(0, 0, (2, 2))
    with pytest.raises(ConfigError, match="no cell of the scene counts"):
        empty.means()


def test_means_are_small_and_come_back_from_a_pickle():
    means = gathered(noise(1024, 9, 7))
    text = pickle.dumps(means)
    assert len(text) < 50 * 1024 * 4 + 1000
    back = pickle.loads(text)  # noqa: S301 - its own
    assert back == means
    assert hash(back) == hash(means)
    assert means != gathered(noise(1024, 9, 7, seed=2))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 20))
def test_parts_share_out_the_lattice(rows, cols, core):
    seen = torch.zeros(rows, cols, dtype=torch.int64)
    for (down, across), row, col, (height, width) in parts((rows, cols), core):
        assert (row, col) == (down * core, across * core)
        assert 1 <= height <= core + 1
        assert 1 <= width <= core + 1
        seen[row : row + height, col : col + width] += 1
    assert (seen == 1).all()


def test_reach_is_that_of_the_convolutions():
    assert pools_over_scene(Small())
    assert not pools_over_scene(Small(pooling="tile"))
    plain = Small(pooling="tile")
    assert held(plain) is plain
    assert exact_halo(plain, 3, 8) is None
    assert exact_halo(Small(), 3, 8) in (16, 24)


def test_a_halo_that_reaches_is_chosen_and_makes_tiles_exact():
    found = choose_halo(Small(), 3, 8)
    assert found.decision == "structure"
    assert found.exact
    assert found.halo == found.limit
    rows = compare(Small(), scene_like(3, 512), 8, [0, 8, found.halo], None).differences
    assert rows[0].score_error > rows[1].score_error > rows[2].score_error
    assert rows[2].score_error < 1e-5
    other = choose_halo(Small(pooling="tile"), 3, 8, tile=256)
    assert other.limit is None
    assert not other.exact


def test_a_picture_is_gathered_as_in_a_run():
    network, pixels = Small(), noise(1, 3, 640, 1088)
    with torch.no_grad():
        means = means_of(network, pixels, 16)
        short = means_of(network, pixels, 0)
        context = context_of(network, means, pixels, [(0, 0)])
        torch.testing.assert_close(network(pixels, context), network(pixels), rtol=1e-5, atol=1e-5)
    assert abs(short.values - means.values).max() > 1e-4
