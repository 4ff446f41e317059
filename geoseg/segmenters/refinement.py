"""One mask refined: a look at the whole image, then at crops of it in full resolution.

The first look settles what belongs to the mask, the crops settle its edges; they see the answer of the first look, and
the rough mask no longer.  Crops are independent: they may be looked at anywhere and in any order.

Source: Cheng et al. 2020, arXiv 2005.02551, section 3.3, and the package ``segmentation-refinement`` released with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from geoseg.bundle import Bundle
from geoseg.errors import BundleError, ConfigError
from geoseg.grid import Window
from geoseg.networks.cascadepsp import STRIDE, CascadePSP
from geoseg.normalisation import Normalisation
from geoseg.segmenters.interface import Tiles, normalised
from geoseg.segmenters.network import module_of
from geoseg.segmenters.refinement_settings import EDGE, RefinementSettings

# A probability above which a pixel belongs to the mask, and the byte above which a mask of bytes has one.
_THRESHOLD, _BYTE_THRESHOLD = 0.5, 127


class Refiner:
    """A refinement module with all that it needs to be shown pixels and a mask.

    Args:
        module: the network, in evaluation mode.
        scaling: of the bands.
        settings: the procedure's numbers.
    """

    def __init__(self, module: CascadePSP, scaling: Normalisation, settings: RefinementSettings) -> None:
        self.module = module
        self.scaling = scaling
        self.settings = settings

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        scaling: Normalisation | None = None,
        settings: RefinementSettings | None = None,
    ) -> Refiner:
        """Return the refiner of a bundle.

        Args:
            bundle: an opened bundle.
            scaling: of the bands, measured on the scene, for a bundle that brings none.
            settings: by default the procedure as published, with crops of the bundle's tile; small images are enlarged
                only for a network that was not trained at one resolution.

        Raises:
            BundleError: the bundle holds no refiner, or one that this version cannot build.
            ConfigError: neither the bundle nor the caller scales the bands.
        """
        description = bundle.description
        if description.method != "refiner":
            raise BundleError(
                f"{bundle.path} holds a {description.method} model, which refines nothing: give one trained with "
                "network cascadepsp."
            )
        record = description.normalisation
        scaling = record.build() if record else scaling
        if scaling is None:
            raise ConfigError(f"{bundle.path} does not scale its bands: measure the scaling on the scene.")
        module = module_of(bundle)
        assert isinstance(module, CascadePSP)
        module = module.eval().requires_grad_(False)
        if settings is None:
            enlarge_to = None if description.resolution is None else 0
            settings = RefinementSettings(side=description.tile, enlarge_to=enlarge_to)
        return cls(module, scaling, settings)

    def place(self, device: torch.device) -> None:
        """Move the network to ``device``."""
        self.module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def refine(
        self,
        pixels: NDArray[Any],
        valid: NDArray[np.bool_],
        prior: NDArray[Any],
        settings: RefinementSettings | None = None,
    ) -> NDArray[np.float32]:
        """Return the probability (H, W) that each pixel belongs to the mask, 0 where there are no data.

        Args:
            pixels: (B, H, W) scene values of an image, such as an object and its surroundings.
            valid: (H, W), where there are data.
            prior: (H, W), the rough mask: bool, probabilities, or bytes from 0 to 255.
            settings: other than the refiner's own.

        Raises:
            ConfigError: arrays of different sizes, or another number of bands than the network's.
        """
        if pixels.ndim != 3 or not pixels.shape[1:] == valid.shape == prior.shape:
            raise ConfigError(
                f"pixels, valid mask and prior of a refinement are {pixels.shape}, {valid.shape} and {prior.shape}: "
                "give (B, H, W), (H, W) and (H, W)."
            )
        device = next(self.module.parameters()).device
        data = np.stack([pixels])
        tiles = Tiles(
            torch.from_numpy(data if data.dtype == np.uint8 else data.astype(np.float32)).to(device),
            torch.from_numpy(np.stack([valid])).to(device),
            (Window(0, 0, *valid.shape),),
        )
        image = normalised(tiles, self.scaling)[0]
        return refined(self.module, image, rough_mask(prior), settings or self.settings, valid)


def rough_mask(prior: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask of bools, of probabilities or of bytes as bool: above one half, or above 127.

    >>> rough_mask(np.array([0, 127, 128], np.uint8)).tolist()
    [False, False, True]

    Raises:
        ConfigError: numbers of another kind.
    """
    if prior.dtype == bool:
        return prior
    if prior.dtype != np.uint8 and not np.issubdtype(prior.dtype, np.floating):
        raise ConfigError(f"a rough mask is of {prior.dtype}: give bool, bytes from 0 to 255, or probabilities.")
    mask: NDArray[np.bool_] = prior > (_BYTE_THRESHOLD if prior.dtype == np.uint8 else _THRESHOLD)
    return mask


def refined(
    module: CascadePSP,
    image: torch.Tensor,
    mask: NDArray[np.bool_],
    settings: RefinementSettings,
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Return the probabilities (H, W) of a refined mask; 0 everywhere for a rough mask without a pixel.

    Args:
        module: in evaluation mode, on the image's device.
        image: (B, H, W), normalised, 0 where there are no data.
        mask: (H, W), the rough mask.
        settings: the procedure's numbers.
        valid: (H, W), where there are data, by default everywhere; elsewhere nothing is in any mask.

    Raises:
        ConfigError: an image that the module cannot take.
    """
    if valid is not None:
        mask = mask & valid
    if not mask.any():
        # The authors' scripts say so; their package would look at it.
        return np.zeros(mask.shape, np.float32)
    fine, quarter = first_look(module, image, mask, settings)
    if settings.fast:
        found = _back(fine, mask.shape).cpu().numpy()
        return found if valid is None else np.where(valid, found, np.float32(0))
    hard, soft = (_resized(each, mask.shape) for each in (fine, quarter))
    decided = (hard > _THRESHOLD).cpu().numpy()
    if valid is not None:
        decided = decided & valid
        soft = soft.where(torch.from_numpy(valid).to(soft.device), 0)
    windows = crops(decided, settings)
    answers = [(window, closer_look(module, image, decided, soft, window)) for window in windows]
    found = assembled(answers, decided)
    return found if valid is None else np.where(valid, found, np.float32(0))


def first_look(
    module: CascadePSP, image: torch.Tensor, mask: NDArray[np.bool_], settings: RefinementSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a look at the whole image says, (h, w) each: the probabilities, and those of the map at stride 4.

    h and w are those of the image as it was looked at, its longer side being L, or one pixel less where rounding down
    makes it so.

    Args: as for :func:`refined`.
    """
    pixels = image[None]
    masks = torch.from_numpy(np.where(mask, np.float32(1), np.float32(-1)))[None, None].to(image.device)
    longest = max(mask.shape)
    enlarge_to = settings.side if settings.enlarge_to is None else settings.enlarge_to
    if longest > settings.side:
        # Not below one pixel, for strips.
        size = tuple(max(1, math.floor(side * (settings.side / longest))) for side in mask.shape)
        pixels, masks = (F.interpolate(each, size, mode="area") for each in (pixels, masks))
    elif longest < enlarge_to:
        scale = enlarge_to / longest
        pixels = F.interpolate(pixels, scale_factor=scale, mode="bicubic", align_corners=False)
        masks = F.interpolate(masks, scale_factor=scale, mode="bilinear", align_corners=False)
    return _run(module, pixels, masks)


def crops(decided: NDArray[np.bool_], settings: RefinementSettings) -> list[Window]:
    """Return the crops that are looked at in full resolution, column by column from the left, as the authors do.

    Crops without foreground or without background are left out, and those with a share outside the settings' bounds.

    Args:
        decided: (H, W), the mask after the first look.
        settings: the procedure's numbers.
    """
    starts = [_starts(side, settings) for side in decided.shape]
    height, width = (min(side, settings.side) for side in decided.shape)
    found = []
    for col, row in product(starts[1], starts[0]):
        share = np.count_nonzero(decided[row : row + height, col : col + width]) / (height * width)
        if 0 < share < 1 and settings.skip_below <= share <= settings.skip_above:
            found.append(Window(row, col, height, width))
    return found


def closer_look(
    module: CascadePSP, image: torch.Tensor, decided: NDArray[np.bool_], soft: torch.Tensor, window: Window
) -> NDArray[np.float32]:
    """Return the probabilities (height, width) of one crop in full resolution.

    Args:
        module: in evaluation mode, on the image's device.
        image: (B, H, W), normalised.
        decided: (H, W), the mask after the first look.
        soft: (H, W), the first look's probabilities at stride 4, enlarged.  They take the place of what is known at
            stride 8, as a logistic of another steepness than the module's own passes use there.
        window: of the crop.
    """
    here = (slice(window.row, window.row_stop), slice(window.col, window.col_stop))
    mask = torch.from_numpy(np.where(decided[here], np.float32(1), np.float32(-1)))[None, None].to(image.device)
    found, _ = _run(module, image[(slice(None), *here)][None], mask, soft[here][None, None] * 2 - 1)
    return found.cpu().numpy()


def assembled(answers: Iterable[tuple[Window, NDArray[np.float32]]], decided: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the probabilities (H, W): the mean of the crops' answers, 0 or 1 as was decided where there is none.

    Answers leave out a margin at sides that are not the image's.  Their order does not matter, bit by bit.

    Args:
        answers: the probabilities (height, width) of each crop.
        decided: (H, W), the mask after the first look.
    """
    total, count = np.zeros(decided.shape, np.float64), np.zeros(decided.shape, np.uint16)
    # Sums of three or more depend on their order.
    for window, found in sorted(answers, key=lambda answer: answer[0]):
        rows, cols = (
            _inner(start, stop, side)
            for start, stop, side in zip(
                (window.row, window.col), (window.row_stop, window.col_stop), decided.shape, strict=True
            )
        )
        here = (
            slice(window.row + rows.start, window.row + rows.stop),
            slice(window.col + cols.start, window.col + cols.stop),
        )
        total[here] += found[rows, cols]
        count[here] += 1
    return np.where(count > 0, total / np.maximum(count, 1), decided).astype(np.float32)


def _inner(start: int, stop: int, side: int) -> slice:
    """Return which part of a crop from ``start`` to ``stop`` counts, along an axis of ``side`` pixels."""
    return slice(0 if start == 0 else EDGE, stop - start - (0 if stop == side else EDGE))


def _starts(side: int, settings: RefinementSettings) -> list[int]:
    """Return where crops begin along an axis, each place once, in ascending order."""
    last = max(0, side - settings.side)
    return sorted({min(start, last) for start in range(0, side + 1, settings.step)})


def _run(module: CascadePSP, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the probabilities (h, w) of the answer and of the map at stride 4, for image and masks of any size."""
    height, width = given[0].shape[-2:]
    padded = [_padded(each, 0.0 if i == 0 else -1.0) for i, each in enumerate(given)]
    with torch.inference_mode():
        maps = module(*padded)
        fine, quarter = (maps[name][0, 0, :height, :width].float().sigmoid() for name in ("out_224", "out_56_2"))
    return fine, quarter


def _padded(values: torch.Tensor, fill: float) -> torch.Tensor:
    """Return (N, C, H, W) with both sides raised beyond the next multiple of the stride, if one side is none.

    A side that is a multiple grows too if the other is not: the authors' code does so, and pyramid pooling sees it.
    """
    height, width = values.shape[-2:]
    if height % STRIDE == 0 and width % STRIDE == 0:
        return values
    below, right = (STRIDE - side % STRIDE for side in (height, width))
    return F.pad(values, (0, right, 0, below), value=fill)


def _resized(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return a map (h, w) at another size, bilinearly."""
    return F.interpolate(values[None, None], tuple(shape), mode="bilinear", align_corners=False)[0, 0]


def _back(values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the answer of the first look (h, w) at the image's own size, as the package's fast mode does."""
    if max(values.shape) > max(shape):
        return F.interpolate(values[None, None], tuple(shape), mode="area")[0, 0]
    if values.shape == tuple(shape):
        return values
    return F.interpolate(values[None, None], tuple(shape), mode="bilinear", align_corners=True)[0, 0]
