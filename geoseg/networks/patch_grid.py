"""The grid of patches that GLNet looks at, and which cells of a coarse map of the whole scene lie under each patch.

Both are part of the method: scores are sums over these patches, and maps go to and fro between patches and scene by
these cells.  Source: Chen et al. 2019, arXiv 1905.06368, in the arithmetic of the code released with it,
which leaves cells without a patch for some sizes of scenes; there the grid is made denser.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from geoseg.errors import ConfigError

# Height and width.
Shape = tuple[int, int]
# Row and column of a patch's first pixel.
Corner = tuple[int, int]
MIN_OVERLAP = 50


@dataclass(frozen=True)
class PatchGrid:
    """Patches of one size in a scene.

    Attributes:
        scene_yx: height and width of the scene in pixels.
        patch_yx: of a patch.
        tops: first rows of the patches, ascending.
        lefts: first columns.
    """

    scene_yx: Shape
    patch_yx: Shape
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @cached_property
    def corners(self) -> tuple[Corner, ...]:
        """The first pixel of every patch, row by row."""
        return tuple((top, left) for top in self.tops for left in self.lefts)

    def cells(self, corner: Corner, map_yx: Shape) -> tuple[slice, slice]:
        """Return the rows and columns of a map of the scene that lie under the patch at ``corner``.

        Args:
            corner: one of :attr:`corners`.
            map_yx: height and width of the map in cells.
        """
        rows, cols = (
            slice(first, first + count) for first, count in map(span, corner, self.patch_yx, self.scene_yx, map_yx)
        )
        return rows, cols


def patch_grid(
    scene_yx: Shape, patch_yx: Shape, maps_yx: Iterable[Shape] = (), *, min_overlap: int = MIN_OVERLAP
) -> PatchGrid:
    """Return the fewest patches whose neighbours share ``min_overlap`` pixels and that leave no cell without a patch.

    >>> patch_grid((2448, 2448), (508, 508)).tops
    (0, 388, 776, 1164, 1552, 1940)

    Args:
        scene_yx: height and width of the scene in pixels, no smaller than a patch.
        patch_yx: of a patch.
        maps_yx: heights and widths of the maps of the scene whose cells must all lie under a patch.
        min_overlap: pixels that neighbouring patches share at least.

    Raises:
        ConfigError: a scene smaller than a patch, or an overlap that leaves nothing of one.
    """
    maps = tuple(maps_yx)
    tops, lefts = (
        _starts(scene_yx[axis], patch_yx[axis], min_overlap, {shape[axis] for shape in maps}) for axis in (0, 1)
    )
    return PatchGrid(scene_yx, patch_yx, tops, lefts)


def span(start: int, patch: int, scene: int, cells: int) -> tuple[int, int]:
    """Return along one axis the first cell under a patch, and how many there are.

    The authors round the place and the size of a patch in cells each by itself, halves to even.  Where the sum then
    misses the scene's edge by a cell, the last patch is put against the edge; and a patch has a cell at least.

    Args:
        start: first pixel of the patch.
        patch: its pixels.
        scene: pixels of the scene.
        cells: of the map.
    """
    count = max(1, round(cells * (patch / scene)))
    if start + patch >= scene:
        return cells - count, count
    return min(round(cells * (start / scene)), cells - count), count


def _starts(scene: int, patch: int, min_overlap: int, maps: Collection[int]) -> tuple[int, ...]:
    """Return the first pixels of the patches along one axis."""
    if not 0 <= min_overlap < patch:
        raise ConfigError(
            f"patches of {patch} pixels cannot share {min_overlap} with their neighbours: give 0 or more, and less "
            "than a patch."
        )
    if scene < patch:
        raise ConfigError(f"a scene of {scene} pixels is smaller than a patch of {patch}: enlarge it to a patch first.")
    if scene == patch:
        return (0,)
    count = -(-scene // patch)
    while patch - (scene - patch) / (count - 1) < min_overlap:
        count += 1
    # More patches move on by fewer cells, in the end by less than one, so this ends.
    while not all(_covers(_spread(scene, patch, count), patch, scene, cells) for cells in maps):
        count += 1
    return _spread(scene, patch, count)


def _spread(scene: int, patch: int, count: int) -> tuple[int, ...]:
    step = (scene - patch) / (count - 1)
    return (*(round(place * step) for place in range(count - 1)), scene - patch)


def _covers(starts: tuple[int, ...], patch: int, scene: int, cells: int) -> bool:
    """Whether every cell of a map lies under a patch."""
    end = 0
    for start in starts:
        first, count = span(start, patch, scene, cells)
        if first > end:
            return False
        end = max(end, first + count)
    return end == cells
