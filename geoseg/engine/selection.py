"""Which polygons a user wants, and how they are to be shaped, before the classes are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from geoseg.classes import Classes
from geoseg.errors import ConfigError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from geoseg.vector.vectorize import Shaping


@dataclass(frozen=True)
class Selection:
    """Which polygons are written, and what is done to them; every field is an option of the command line.

    Attributes:
        min_area: regions under this many m² are not kept.
        small: what becomes of them: ``merge`` into the neighbour with the longest shared border, or ``drop``.
        fill_holes: holes in the data under this many m² take the class around them.
        simplify: how far outlines may move, in ground metres; None leaves them along pixel edges.
        smooth: cut the corners of pixels.
        connectivity: 4, or 8 where pixels that touch in a corner belong to one feature.
        regularize: give the outlines of all written classes but background right angles.
        regularize_class: give those of these classes (names or ids) right angles.
        drop: classes (names or ids) that are not written.
        only: if there are any, classes that alone are written, background too.
        keep_background: write background polygons too.
    """

    min_area: float = 0.0
    small: Literal["merge", "drop"] = "merge"
    fill_holes: float = 0.0
    simplify: float | None = None
    smooth: bool = False
    connectivity: int = 4
    regularize: bool = False
    regularize_class: Sequence[str] = ()
    drop: Sequence[str] = ()
    only: Sequence[str] = ()
    keep_background: bool = False

    @classmethod
    def of(cls, options: object) -> Selection:
        """Return what ``options`` say of polygons: those of its attributes that have the names of fields."""
        return cls(**{item.name: getattr(options, item.name) for item in fields(cls) if hasattr(options, item.name)})

    def dropped_ids(self, classes: Classes) -> frozenset[int]:
        """Return the label values that are not written.

        Raises:
            LabelsError: a class does not exist.
            ConfigError: no class is left.
        """
        ids = {classes.find(name).id for name in self.drop}
        only = {classes.find(name).id for name in self.only}
        if only:
            ids |= set(classes.ids) - only
        elif not self.keep_background:
            ids |= {item.id for item in classes if item.background}
        if only and not set(classes.ids) - ids:
            raise ConfigError("--only and --drop name the same classes, so nothing would be written: leave one out.")
        return frozenset(ids)

    def shaping(self, classes: Classes) -> Shaping:
        """Return what is done to regions and outlines.

        Raises:
            LabelsError: a class does not exist.
            ConfigError: a value is refused.
        """
        from geoseg.vector.vectorize import Shaping

        for name, value, unit in (
            ("--min-area", self.min_area, "square metres"),
            ("--fill-holes", self.fill_holes, "square metres"),
            ("--simplify", self.simplify, "metres"),
        ):
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"{name} {value} is no size: give {unit}, 0 or more.")
        if self.small not in ("merge", "drop"):
            raise ConfigError(f"--small {self.small!r} is neither 'merge' nor 'drop'.")
        if self.connectivity not in (4, 8):
            raise ConfigError(f"--connectivity {self.connectivity} is neither 4 nor 8.")
        return Shaping(
            min_area_m2=self.min_area,
            small=self.small,
            fill_holes_m2=self.fill_holes,
            simplify_m=self.simplify,
            smooth=self.smooth,
            connectivity=self.connectivity,
            regularize=self._regularized_ids(classes),
        )

    def check(self, classes: Classes, grid: GeoBox) -> None:
        """Refuse what cannot be done to polygons of these classes on this grid, before any work.

        Raises:
            LabelsError, ConfigError: as above, or pixels that are too oblong to be regularised.
            SceneError: the grid lies outside the area of its CRS.
        """
        self.dropped_ids(classes)
        if self.shaping(classes).regularize:
            from geoseg.geodesy import projection
            from geoseg.vector.ground_frame import GroundFrame

            GroundFrame.of((int(grid.shape[0]), int(grid.shape[1])), grid.affine, projection(grid))

    def _regularized_ids(self, classes: Classes) -> frozenset[int]:
        dropped = self.dropped_ids(classes)
        named = [classes.find(name) for name in self.regularize_class]
        for item in named:
            if item.id in dropped:
                raise ConfigError(f"--regularize-class {item.name} is a class that is not written: leave it out.")
        every = {item.id for item in classes if not item.background} - dropped if self.regularize else set()
        return frozenset(every | {item.id for item in named})
