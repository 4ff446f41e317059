"""Label super-resolution against the released loss, a transcription of its equations, and exact positions of pixels."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
import torch
from affine import Affine

from geoseg.losses.coarse_labels import CoarseLabelLoss, block_shares
from geoseg.training.blocks import CellGrid

from .conftest import reference_folder

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def reference(golden):
    return golden("label_super_resolution")


def scores_of(reference, weights, *, plus=0, classes=None, times=1.0, dtype=torch.float64):
    shape = [int(n) for n in reference["input_shape"]]
    shape[1] = classes or shape[1]
    drawn = weights.golden_input(tuple(shape), int(reference["seed"]) + plus)
    return (2 * times * drawn.double()).to(dtype).requires_grad_()


def class_blocks(reference):
    """Every pixel a block of its own, which grouping by class puts together."""
    grid = torch.from_numpy(reference["lr_class_grid"].astype(np.int64))
    blocks = torch.arange(grid[0].numel()).view(grid[0].shape).expand_as(grid)
    return blocks, grid.flatten(1)


def released(reference, means, form):
    tables = (torch.from_numpy(reference[name]) for name in (means, "released_radii"))
    weights = torch.tensor(reference.config["class_weights"])
    return CoarseLabelLoss(*tables, weights, form=form, grouping="class", least_deviation=0)


def near(found, expected, share=1e-4):
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["raw", "tuned"])
def test_the_released_loss(reference, weights, kind, dtype):
    loss = released(reference, "released_means" + ("_tuned" if kind == "tuned" else ""), "interval")
    scores = scores_of(reference, weights, dtype=dtype)
    blocks, classes = class_blocks(reference)
    # The released code divides by ten pixels more than there are.
    pixels = blocks[0].numel()
    each = [loss(scores[i : i + 1], blocks[i : i + 1], classes[i : i + 1]) for i in range(len(scores))]
    found = torch.stack(each) * pixels / (pixels + 10)
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    np.testing.assert_allclose(found.detach().numpy(), reference[f"released_loss_{kind}"], rtol=tolerance)
    found.sum().backward()
    near(scores.grad, reference[f"released_grad_{kind}"])


def test_the_older_form(reference, weights):
    loss = released(reference, "released_means", "interval_mean_pq")
    scores = scores_of(reference, weights)
    value = loss(scores, *class_blocks(reference))
    value.backward()
    assert value.item() == pytest.approx(float(reference["mean_pq_loss"]), rel=1e-9)
    near(scores.grad, reference["mean_pq_grad"])


def gaussian(reference):
    means, radii = (torch.from_numpy(reference[f"released_{name}"][:, 1:].copy()) for name in ("means", "radii"))
    # The reference takes its tables from the same file without the released code's floors.
    means, radii = means.where(means > 1e-6, 0), radii.where(radii > 1e-4, 0)
    weights = torch.tensor(reference.config["class_weights"])
    blocks, classes = (torch.from_numpy(reference[name].astype(np.int64)) for name in ("blocks", "block_class"))
    return CoarseLabelLoss(means, radii, weights, least_deviation=0, eps=1e-6), blocks, classes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_of_any_shape(reference, weights, dtype):
    loss, blocks, classes = gaussian(reference)
    scores = scores_of(reference, weights, plus=1, classes=loss.means.shape[1], dtype=dtype)
    shares = block_shares(scores, blocks, classes.shape[1])
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert np.array_equal(shares.pixels.numpy(), reference["block_n"])
    for found, name in ((shares.mean, "block_mean"), (shares.variance, "block_var")):
        np.testing.assert_allclose(found.detach().permute(0, 2, 1).numpy(), reference[name], rtol=tolerance)
    divergence = loss.divergence(shares, classes).detach().numpy()
    np.testing.assert_allclose(divergence, reference["gaussian_D"], rtol=tolerance, atol=tolerance)
    value = loss(scores, blocks, classes)
    assert value.dtype == dtype
    assert value.item() == pytest.approx(float(reference["gaussian_loss"]), rel=tolerance)
    value.backward()
    near(scores.grad, reference["gaussian_grad"])


def test_sure_pixels(reference, weights):
    loss, blocks, classes = gaussian(reference)
    scores = scores_of(reference, weights, plus=1, classes=loss.means.shape[1], times=200)
    value = loss(scores, blocks, classes)
    value.backward()
    assert value.item() == pytest.approx(float(reference["gaussian_saturated_loss"]), rel=1e-9)
    largest = scores.grad.abs().max().item()
    assert largest == pytest.approx(float(reference["gaussian_saturated_grad_absmax"]), rel=1e-4)


def test_the_toy(reference):
    """One block of 4 × 4 pixels: four sure ones, all a quarter, eight sure ones, all a half, none."""
    tables = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.1, 0.1]])
    loss = CoarseLabelLoss(*tables, eps=0)
    sure = [torch.arange(16) < count for count in (4, 8, 0)]
    rows = [1600.0 * each - 800 for each in sure]
    quarter, half = torch.full((16,), 0.25).logit(), torch.zeros(16)
    found = []
    for row in (rows[0], quarter, rows[1], half, rows[2]):
        scores = torch.stack([row.double(), torch.zeros(16).double()]).view(1, 2, 4, 4)
        found.append(loss(scores, torch.zeros(1, 4, 4).long(), torch.zeros(1, 1).long()).item())
    # The tables are float32 here: what they are off by, the loss is.
    np.testing.assert_allclose(found, reference["toy_losses"], rtol=1e-6)


def test_the_cell_of_every_pixel(reference):
    with np.load(reference_folder() / "label_super_resolution" / "alignment.npz") as arrays:
        expected = {name: arrays[name] for name in arrays}
    told = reference.manifest["alignment"]
    shape = tuple(told["shape"])
    width = int(expected["lr_width"])
    image, coarse = (Affine(*expected[f"{name}_transform"]) for name in ("image", "lr"))
    crs, own = (pyproj.CRS.from_epsg(int(expected[f"{name}_epsg"])) for name in ("image", "lr"))
    height = int(expected["row"].max()) + 1
    grid = CellGrid(own, coarse, (height, width))
    rows, cols = grid.cells(crs, image, shape)
    assert np.array_equal(rows, expected["row"])
    assert np.array_equal(cols, expected["col"])
    ids, counts = np.unique(grid.ids(rows, cols), return_counts=True)
    assert np.array_equal(ids, expected["block_ids"])
    assert np.array_equal(counts, expected["block_counts"])
    assert len(ids) == told["distinct_blocks"]
    # Cells that lie in the tile wholly hold as many pixels as their area says, within what an edge can cut.
    inside = [number for number in ids if not _touches_the_edge(grid.ids(rows, cols), number)]
    found = counts[np.isin(ids, inside)]
    assert np.abs(found - grid.areas(np.array(inside), crs, image)).max() < 8


def _touches_the_edge(ids, number):
    edge = np.concatenate([ids[0], ids[-1], ids[:, 0], ids[:, -1]])
    return number in edge
