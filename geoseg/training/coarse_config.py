"""Coarse labels in a configuration: where they lie, what is known of their classes, and how they are learned from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from geoseg.training.variation_config import Section


class CoarseSourceConfig(Section):
    """One kind of coarse labels, such as a land cover map; ``coarse`` of every scene names its file there.

    Attributes:
        table: CSV file of what each coarse class is made of (``geoseg coarse-stats`` writes one), or the name of a
            table that ships with the program: ``nlcd`` or ``nlcd-delaware``.
        means: ``tuned`` takes the other means of a table that has both, as ``nlcd`` does.
        weights: of coarse classes by code, in place of the table's; with 0 a class teaches nothing.
        class_field: attribute of polygons that says their coarse class, by its code.
        ignore: codes that teach nothing and need no row in the table.
        weight: of this source in the loss.
        form: of the loss, see :class:`geoseg.losses.coarse_labels.CoarseLabelLoss`, as for the next five.
        grouping: ``block``, or ``class`` as in the code released with the method.
        least_deviation: what smaller standard deviations are raised to.
        eps: added to every variance.
        max_block_grad: how strongly a block may pull; 0 for any.
        outliers: standard deviations beyond which blocks do not count after a fifth of the training; 0 for none.
        min_block_fraction: least share of a block that a patch must show for the block to count there.
        block_erode: pixels within so many rows and columns of a block's border do not count.
    """

    table: str
    means: Literal["measured", "tuned"] = "measured"
    weights: dict[int | str, float] = Field(default_factory=dict)
    class_field: str | None = None
    ignore: list[int | str] = Field(default_factory=list)
    weight: float = Field(default=1.0, ge=0)
    form: Literal["gaussian", "interval", "interval_mean_pq"] = "gaussian"
    grouping: Literal["block", "class"] = "block"
    least_deviation: float = Field(default=0.01, ge=0)
    eps: float = Field(default=1e-6, ge=0)
    max_block_grad: float = Field(default=0.0, ge=0)
    outliers: float = Field(default=0.0, ge=0)
    min_block_fraction: float = Field(default=0.5, ge=0, le=1)
    block_erode: int = Field(default=0, ge=0, le=256)


class CoarseConfig(Section):
    """How a network learns from coarse labels.

    Attributes:
        sources: kinds of coarse labels.
        fine_weight: of the usual loss wherever scenes have fine labels as well; 0 keeps these for validation alone.
        teacher: a bundle of a network that has learned before, such as one with few weights from the same coarse
            labels, or what this network was after half of its steps (``network.start`` too).  Its map of the scenes is
            moved in each block to the shares of the block's coarse class, and is what the network learns from by the
            usual loss, in place of the losses of the sources.
    """

    sources: list[CoarseSourceConfig] = Field(default_factory=list)
    fine_weight: float = Field(default=1.0, ge=0)
    teacher: str | None = None
