"""Which engine computes a run that leaves it open: all that can are timed on a tile of its scene."""

from __future__ import annotations

import copy
import time
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from geoseg.errors import ConfigError
from geoseg.grid import Window

if TYPE_CHECKING:
    from geoseg.engine.plan import Plan
    from geoseg.engine.predict import Options
    from geoseg.segmenters.interface import Segmenter

# For fewer tiles, what an engine needs to begin is not made good.
_WORTHWHILE = 16
# Of several passes the fastest counts: what else the machine does only makes them slower.
_PASSES = 2
_FLOAT32 = ("auto", "float32")

# What was chosen in this process: scenes of a batch are computed alike.
_CHOSEN: dict[Hashable, str] = {}


@dataclass(frozen=True)
class _Timed:
    """Seconds until the first scores were there, and for a tile from then on."""

    beginning: float
    each: float

    def whole(self, tiles: int) -> float:
        return self.beginning + tiles * self.each


def refuse_engine(segmenter: Segmenter, options: Options) -> None:
    """Refuse an engine that cannot compute the method, or not as asked for.

    Raises:
        ConfigError: so it is.
    """
    from geoseg.engine.device import choose_device
    from geoseg.segmenters.engines import check_engine

    name = options.engine
    if name in ("auto", "torch"):
        return
    if name not in segmenter.engines:
        raise ConfigError(f"{name} cannot compute this method: leave --engine {name} out.")
    if options.precision not in _FLOAT32:
        raise ConfigError(f"{name} computes in float32: leave --precision {options.precision} or --engine {name} out.")
    if not options.scheduler:  # what is there, is for its workers to say
        check_engine(name, choose_device(options.device))


def settled(plan: Plan, segmenter: Segmenter, options: Options) -> tuple[Plan, list[str]]:
    """Return the plan with an engine chosen where its engine is ``auto``, and what a user should know of it.

    It is ``torch`` where nothing else can be used or a scene is small, and what a run that goes on began with.  Two
    runs may choose differently where engines are about as fast; name one where labels are to be the same to the pixel.

    Raises:
        SceneError: the scene cannot be read.
        OutputError: a store in object storage does not answer.
    """
    if plan.engine != "auto":
        return plan, []
    names = _usable(plan, segmenter, options)
    if len(names) == 1:
        return replace(plan, engine=names[0]), []
    begun = None if options.fresh else _begun(plan, names)
    if begun is not None:
        return replace(plan, engine=begun), []
    kind = (repr(plan.method_record()), plan.tiles.shape, options.workers)
    if kind in _CHOSEN:
        return replace(plan, engine=_CHOSEN[kind]), []
    tiles = plan.tiles.covering(Window(0, 0, *plan.model_scene.shape))
    if len(tiles) < _WORTHWHILE:
        return replace(plan, engine="torch"), []
    timed = {name: _time(plan, segmenter, name, tiles[len(tiles) // 2], options) for name in names}
    known = {name: each for name, each in timed.items() if each is not None}
    chosen = min(known, key=lambda name: known[name].whole(len(tiles)))
    _CHOSEN[kind] = chosen
    told = ", ".join(f"{name} {each.each:.2f} s a tile" for name, each in known.items())
    return replace(plan, engine=chosen), [f"computed by {chosen} ({told})."]


def _usable(plan: Plan, segmenter: Segmenter, options: Options) -> list[str]:
    """Return the engines that can compute here, torch first."""
    from geoseg.engine.device import choose_device
    from geoseg.segmenters.engines import check_engine

    if options.scheduler or plan.precision not in _FLOAT32:
        return ["torch"]
    found = []
    for name in segmenter.engines:
        try:
            check_engine(name, choose_device(options.device))
        except ConfigError:
            continue
        found.append(name)
    return found


def _begun(plan: Plan, names: list[str]) -> str | None:
    """Return the engine of the run that the plan's store holds the chunks of, if it holds any."""
    from geoseg.engine.store import store_at

    store = store_at(plan.store, plan.chunks)
    if not store.claimed:
        return None
    return next((name for name in names if store.holds(replace(plan, engine=name).fingerprint())), None)


def _time(plan: Plan, segmenter: Segmenter, name: str, position: tuple[int, int], options: Options) -> _Timed | None:
    """Return what an engine takes for a tile, None if it cannot compute the network."""
    from geoseg.engine.context import Context
    from geoseg.engine.device import Runner, choose_device, choose_precision, share_cores

    share_cores(options.workers)
    device = choose_device(options.device)
    dtype, context = choose_precision(plan.precision, device), Context(plan)
    made = copy.deepcopy(segmenter)  # it may yet be sent to workers
    pixels = plan.model_scene.read(plan.tiles.tile_window(position))
    try:
        started = time.monotonic()
        runner = Runner(
            made, plan.state, plan.classes, device=device, dtype=dtype, batch=1, context=context, engine=name
        )
        tiles = runner.tiles([pixels])
        runner.scores(tiles)
        beginning = time.monotonic() - started
        passes = []
        for _ in range(_PASSES):
            started = time.monotonic()
            runner.scores(tiles)
            passes.append(time.monotonic() - started)
    except ConfigError:
        if name == "torch":
            raise
        return None
    return _Timed(beginning, min(passes))
