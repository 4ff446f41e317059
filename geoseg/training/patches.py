"""Patches: pixels with their labels, read where and as the sampler says, in batches ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from affine import Affine
from numpy.typing import NDArray

from geoseg.errors import LabelsError
from geoseg.grid import Window
from geoseg.training.blocks import Blocks
from geoseg.training.labels import IGNORE
from geoseg.training.sampling import Place, Sampler
from geoseg.training.site import Site, windows_of

# Another place is tried so often where a patch holds too little data.
_TRIES = 8


@dataclass(frozen=True)
class Patch:
    """``pixels`` (C, H, W) in the scene's dtype, ``valid`` (H, W) bool, ``labels`` (H, W) uint8, 255 for unknown.

    ``site`` is the number of the site it is of, among those that are trained on or among those that are judged on;
    ``prior`` (H, W) bool is the rough mask that a refiner is given; ``blocks`` are coarse labels, by their source;
    ``taught`` (H, W) uint8 is what a teacher says of the pixels.
    """

    pixels: NDArray[Any]
    valid: NDArray[np.bool_]
    labels: NDArray[np.uint8]
    site: int = 0
    prior: NDArray[np.bool_] | None = None
    blocks: Mapping[int, Blocks] = field(default_factory=dict)
    taught: NDArray[np.uint8] | None = None

    @property
    def known(self) -> bool:
        """Whether anything is known of the classes of its pixels."""
        told = [self.labels] if self.taught is None else [self.labels, self.taught]
        known = any((each != IGNORE).any() for each in told)
        return known or any((each.numbers >= 0).any() for each in self.blocks.values())


class Source(Protocol):
    """Gives patches by number; equal numbers give equal patches, in any thread."""

    def __getitem__(self, number: int) -> Patch:
        """Return patch ``number``."""


def read_patch(site: Site, place: Place, side: int) -> Patch:
    """Read the patch of ``side`` pixels at a place, pixels and labels on one grid.

    Raises:
        SceneError: the scene cannot be read there.
        LabelsError: a label there that is no class.
    """
    row, col = place.centre
    if place.scale == 1 and place.angle == 0:
        window = Window(round(row - side / 2), round(col - side / 2), side, side)
        return turned(read_window(site, window), place.turn)
    to_site = (
        Affine.translation(col, row)
        * Affine.rotation(place.angle)
        * Affine.scale(place.scale)
        * Affine.translation(-side / 2, -side / 2)
    )
    pixels = site.pixels_on(to_site, (side, side), place.scale)
    labels = site.labels_on(to_site, (side, side))
    labels[~pixels.valid] = IGNORE
    blocks, taught = site.blocks_on(to_site, pixels.valid), site.taught_on(to_site, pixels.valid)
    return turned(Patch(pixels.data, pixels.valid, labels, blocks=blocks, taught=taught), place.turn)


def read_window(site: Site, window: Window) -> Patch:
    """Read a window of the site's own grid, mirrored beyond the scene, where nothing is known of the classes.

    Raises:
        SceneError: the scene cannot be read there.
        LabelsError: a label there that is no class.
    """
    pixels = site.scene.read(window)
    to_site = Affine.translation(window.col, window.row)
    labels = site.labels_on(to_site, window.shape)
    outside = np.ones(window.shape, bool)
    outside[window.intersect(site.scene.window).within(window)] = False
    seen = pixels.valid & ~outside
    labels[~seen] = IGNORE
    blocks, taught = site.blocks_on(to_site, seen), site.taught_on(to_site, seen)
    return Patch(pixels.data, pixels.valid, labels, blocks=blocks, taught=taught)


def turned(patch: Patch, turn: int) -> Patch:
    """Return the patch flipped from left to right (``turn`` has 4 in it), then turned by quarters (its lower bits)."""

    def do(array: NDArray[Any]) -> NDArray[Any]:
        flipped = array[..., ::-1] if turn & 4 else array
        return np.ascontiguousarray(np.rot90(flipped, turn & 3, axes=(-2, -1)))

    if turn == 0:
        return patch
    blocks = {number: each.turned(turn) for number, each in patch.blocks.items()}
    taught = None if patch.taught is None else do(patch.taught)
    return Patch(do(patch.pixels), do(patch.valid), do(patch.labels), patch.site, blocks=blocks, taught=taught)


@dataclass(frozen=True)
class Drawing:
    """Draws patch after patch from sites; ``inside`` moves those that are neither turned nor scaled into the scene."""

    sites: Sequence[Site]
    sampler: Sampler
    side: int
    min_valid: float
    inside: bool = False

    def place(self, number: int) -> Place:
        """Return where patch ``number`` was first looked for."""
        return self._drawn(self.sampler.random(number))

    def _drawn(self, random: np.random.Generator) -> Place:
        place = self.sampler.draw(random)
        if not self.inside or place.scale != 1 or place.angle != 0:
            return place
        half = self.side / 2
        row, col = (
            max(half, min(centre, side - half))
            for centre, side in zip(place.centre, self.sites[place.site].scene.shape, strict=True)
        )
        return replace(place, centre=(row, col))

    def __getitem__(self, number: int) -> Patch:
        """Return patch ``number``; of places with too little data the last that was tried."""
        random = self.sampler.random(number)
        for _ in range(_TRIES):
            place = self._drawn(random)
            patch = read_patch(self.sites[place.site], place, self.side)
            if patch.valid.mean() >= self.min_valid and patch.known:
                break
        return replace(patch, site=place.site)


@dataclass(frozen=True)
class Judging:
    """The squares that cover what sites are judged on, read as they are."""

    sites: Sequence[Site]
    windows: Sequence[tuple[int, Window]]

    @classmethod
    def of(cls, sites: Sequence[Site], side: int) -> Judging:
        """Cover the areas of ``sites`` with squares of ``side`` pixels.

        Raises:
            LabelsError: a site where no pixel has a label.
        """
        made = cls(sites, [(i, window) for i, site in enumerate(sites) for window in windows_of(site, side)])
        for i, site in enumerate(sites):
            own = (made[number] for number, (of, _) in enumerate(made.windows) if of == i)
            if not any((patch.labels != IGNORE).any() for patch in own):
                raise LabelsError(
                    f"no pixel of {site.scene.path} that the network would be judged on has a label: choose another "
                    "area for validation, or leave it out."
                )
        return made

    def __len__(self) -> int:
        """Return the number of squares."""
        return len(self.windows)

    def __getitem__(self, number: int) -> Patch:
        """Return square ``number``."""
        site, window = self.windows[number]
        return replace(read_window(self.sites[site], window), site=site)


class Squares(Source, Protocol):
    """A source of so many patches, all of which are judged."""

    def __len__(self) -> int:
        """Return their number."""


Batch = dict[str, torch.Tensor]


def collate(patches: Sequence[Patch], numbers: Sequence[int]) -> Batch:
    """Return the patches as tensors.

    These are ``pixels`` (N, C, H, W) uint8 or float32, ``valid`` bool and ``labels`` uint8 (N, H, W), and of each patch
    its number and that of its site, ``numbers`` and ``sites`` (N,).
    Patches with a prior add ``prior`` (N, H, W) bool, those with a teacher ``taught`` (N, H, W) uint8, those with
    coarse labels from source ``i`` add ``blocks_i`` (N, H, W) int64, -1 for no block, and ``block_classes_i`` (N, B)
    int64, -1 for no such block.
    """
    pixels = np.stack([patch.pixels for patch in patches])
    priors = [patch.prior for patch in patches if patch.prior is not None]
    taught = [patch.taught for patch in patches if patch.taught is not None]
    return {
        **({"prior": torch.from_numpy(np.stack(priors))} if priors else {}),
        **({"taught": torch.from_numpy(np.stack(taught))} if taught else {}),
        **_coarse(patches),
        "pixels": torch.from_numpy(pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)),
        "valid": torch.from_numpy(np.stack([patch.valid for patch in patches])),
        "labels": torch.from_numpy(np.stack([patch.labels for patch in patches])),
        "numbers": torch.tensor(numbers),
        "sites": torch.tensor([patch.site for patch in patches]),
    }


def _coarse(patches: Sequence[Patch]) -> Batch:
    found: Batch = {}
    for number in sorted({number for patch in patches for number in patch.blocks}):
        each = [patch.blocks.get(number) for patch in patches]
        numbers = [np.full(patches[0].labels.shape, -1) if blocks is None else blocks.numbers for blocks in each]
        most = max(len(blocks.ids) for blocks in each if blocks is not None)
        classes = np.full((len(patches), most), -1, np.int64)
        for row, blocks in zip(classes, each, strict=True):
            if blocks is not None:
                row[: len(blocks.ids)] = blocks.classes
        found[f"blocks_{number}"] = torch.from_numpy(np.stack(numbers).astype(np.int64))
        found[f"block_classes_{number}"] = torch.from_numpy(classes)
    return found


class Loader:
    """Batches of patches, read ahead by threads and given in order.

    Threads suffice: reading, warping and decoding leave Python's lock to others.

    Args:
        source: gives a patch by number.
        batches: the numbers of each batch, in order.
        workers: threads; with 0 patches are read when they are asked for.
        pinned: put batches where a GPU copies them from without waiting.
    """

    def __init__(self, source: Source, batches: Iterable[Sequence[int]], *, workers: int, pinned: bool = False) -> None:
        self._source, self._batches, self._workers, self._pinned = source, batches, workers, pinned

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches."""
        if not self._workers:
            for numbers in self._batches:
                yield self._made([self._source[i] for i in numbers], numbers)
            return
        with ThreadPoolExecutor(self._workers, thread_name_prefix="patches") as pool:
            ahead: deque[tuple[Sequence[int], list[Future[Patch]]]] = deque()
            rest = iter(self._batches)
            try:
                while True:
                    while len(ahead) < 2 + self._workers // 4 and (coming := next(rest, None)) is not None:
                        ahead.append((coming, [pool.submit(self._source.__getitem__, i) for i in coming]))
                    if not ahead:
                        return
                    numbers, futures = ahead.popleft()
                    yield self._made([future.result() for future in futures], numbers)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _made(self, patches: Sequence[Patch], numbers: Sequence[int]) -> Batch:
        batch = collate(patches, numbers)
        return {name: value.pin_memory() for name, value in batch.items()} if self._pinned else batch


def batches_from(start: int, stop: int, batch: int, rank: int, world: int) -> Iterator[Sequence[int]]:
    """Yield the patch numbers of batches ``start`` to ``stop`` that process ``rank`` of ``world`` trains on."""
    for number in range(start, stop):
        first = (number * world + rank) * batch
        yield range(first, first + batch)


class Judged:
    """The batches of a validation, the same each time; processes share them.

    Where there are more processes than squares, those without one look at the first, of which they know nothing: all
    must take part, so that their counts can be added up.
    """

    def __init__(self, source: Squares, batch: int, workers: int, pinned: bool, rank: int, world: int) -> None:
        self._source, self._workers, self._pinned = source, workers, pinned
        own = range(rank, len(source), world)
        self._idle = not own
        self._batches = [own[i : i + batch] for i in range(0, len(own), batch)] or [range(1)]

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches."""
        for made in Loader(self._source, self._batches, workers=self._workers, pinned=self._pinned):
            yield {**made, "labels": torch.full_like(made["labels"], IGNORE)} if self._idle else made
