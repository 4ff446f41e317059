"""Several answers to one tile, averaged: the eight ways of turning it, or several segmenters."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from geoseg.errors import ConfigError, unknown_name
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles

if TYPE_CHECKING:
    from geoseg.scene import Scene
    from geoseg.segmenters.macro_windows import MacroGrid

# A quarter turn count, and whether the columns are reversed first.
_TURNS: dict[str, tuple[tuple[int, bool], ...]] = {
    "d4": tuple((turns, flipped) for flipped in (False, True) for turns in range(4)),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
}


class TestTimeAugmentation(Segmenter):
    """Turns and mirrors each tile, segments every version, turns the scores back, and averages their probabilities.

    Args:
        segmenter: what segments each version.
        transforms: ``"d4"``, all eight of the square, or ``"flips"``, the four without quarter turns.

    Raises:
        ConfigError: another name of transforms, or a segmenter that also looks at the scene round its tiles.
    """

    __test__ = False  # the name is the method's, not a test's

    def __init__(self, segmenter: Segmenter, transforms: Literal["d4", "flips"] = "d4") -> None:
        if transforms not in _TURNS:
            raise ConfigError(unknown_name("set of transforms", transforms, _TURNS))
        if segmenter.spec.scene_pass or segmenter.spec.view is not None:
            # What is known of the scene, or of a tile's place in its view, holds as they lie; each turn has its own.
            raise ConfigError(
                "test-time augmentation turns tiles, and this model also looks at the scene round them, which is not "
                "turned: leave --tta out, or use a model that sees its tile alone."
            )
        self.segmenter = segmenter
        self.spec = segmenter.spec
        self._turns = _TURNS[transforms]

    def prepare(self, scene: Scene) -> State:
        """Return what the segmenter learned of the scene."""
        return self.segmenter.prepare(scene)

    def lattice(self, shape_yx: tuple[int, int]) -> MacroGrid | None:
        """Return the segmenter's own way of cutting a scene."""
        return self.segmenter.lattice(shape_yx)

    def place(self, device: torch.device) -> None:
        """Move the segmenter to ``device``."""
        self.segmenter.place(device)

    @property
    def engines(self) -> tuple[str, ...]:
        """What can compute the segmenter's scores."""
        return self.segmenter.engines

    def accelerate(self, engine: str) -> None:
        """Let an engine compute the segmenter's scores."""
        self.segmenter.accelerate(engine)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, K, H, W) whose softmax is the mean probability over the versions."""

        def part(turns: int, flipped: bool) -> tuple[torch.Tensor]:
            scores = self.segmenter.segment(_turned_tiles(tiles, turns, flipped), state)
            return (_probabilities(_turned_back(scores, turns, flipped), tiles.valid),)

        (total,) = _sums(part(*turn) for turn in self._turns)
        return _scores(total.div_(len(self._turns)))

    def segment_with_layers(self, tiles: Tiles, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores as :meth:`segment` does, and the segmenter's layers, the mean over the versions."""

        def part(turns: int, flipped: bool) -> tuple[torch.Tensor, torch.Tensor]:
            made = self.segmenter.segment_with_layers(_turned_tiles(tiles, turns, flipped), state)
            scores, layers = (_turned_back(values, turns, flipped) for values in made)
            return _probabilities(scores, tiles.valid), _known(layers, tiles.valid)

        total, layers = _sums(part(*turn) for turn in self._turns)
        return _scores(total.div_(len(self._turns))), layers.div_(len(self._turns))


@dataclass(frozen=True)
class EnsembleState(State):
    """What each member learned of the scene."""

    states: tuple[State, ...] = ()


class Ensemble(Segmenter):
    """Averages the probabilities of several segmenters of the same bands, resolution and classes.

    Args:
        members: at least one.
        weights: positive numbers, one a member; equal by default.

    Raises:
        ConfigError: no members, members that differ in what they take or answer, or weights that do not fit.
    """

    def __init__(self, members: Sequence[Segmenter], weights: Sequence[float] | None = None) -> None:
        self.members = tuple(members)
        self.spec = _common_spec([member.spec for member in self.members])
        given = [1.0] * len(self.members) if weights is None else [float(weight) for weight in weights]
        if len(given) != len(self.members) or not all(math.isfinite(w) and w > 0 for w in given):
            raise ConfigError(
                f"the ensemble's weights are {given}: give {len(self.members)} positive numbers, one a member."
            )
        self.weights = tuple(weight / sum(given) for weight in given)

    def prepare(self, scene: Scene) -> EnsembleState:
        """Let every member look at the scene."""
        return EnsembleState(states=tuple(member.prepare(scene) for member in self.members))

    def place(self, device: torch.device) -> None:
        """Move every member to ``device``."""
        for member in self.members:
            member.place(device)

    @property
    def engines(self) -> tuple[str, ...]:
        """What can compute the scores of all members."""
        first, *others = (member.engines for member in self.members)
        return tuple(engine for engine in first if all(engine in other for other in others))

    def accelerate(self, engine: str) -> None:
        """Let an engine compute the scores of every member."""
        for member in self.members:
            member.accelerate(engine)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        """Return scores (N, K, H, W) whose softmax is the weighted mean of the members' probabilities.

        Raises:
            ConfigError: ``state`` is not what :meth:`prepare` returned.
        """
        members = zip(self.members, self._states(state), self.weights, strict=True)
        parts = (
            (_probabilities(member.segment(tiles, own), tiles.valid).mul_(weight),) for member, own, weight in members
        )
        return _scores(*_sums(parts))

    def segment_with_layers(self, tiles: Tiles, state: State) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores as :meth:`segment` does, and the weighted means of the layers that all members have.

        Raises:
            ConfigError: ``state`` is not what :meth:`prepare` returned.
        """

        def part(member: Segmenter, own: State, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
            scores, layers = member.segment_with_layers(tiles, own)
            places = [member.spec.layers.index(name) for name in self.spec.layers]
            layers = _known(layers[:, places], tiles.valid)
            return _probabilities(scores, tiles.valid).mul_(weight), layers.mul_(weight)

        members = zip(self.members, self._states(state), self.weights, strict=True)
        total, layers = _sums(part(*each) for each in members)
        return _scores(total), layers

    def _states(self, state: State) -> tuple[State, ...]:
        states: tuple[State, ...] = getattr(state, "states", ())
        if len(states) != len(self.members):
            raise ConfigError("the ensemble has no state for its members: pass the state that prepare(scene) returned.")
        return states


def _sums(parts: Iterable[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Add up tuples of tensors place by place, in their order, into the first."""
    return functools.reduce(
        lambda total, part: tuple(one.add_(other) for one, other in zip(total, part, strict=True)), parts
    )


def _known(layers: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return layers (N, L, H, W) float32 with 0 where a pixel is not valid."""
    return layers.float().masked_fill(~valid.unsqueeze(1), 0.0)


def _probabilities(scores: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return probabilities (N, K, H, W) float32, equal for all classes where a pixel is not valid."""
    # Whatever a method answers without data (even NaN) must not spread into an average.
    return scores.float().masked_fill(~valid.unsqueeze(1), 0.0).softmax(dim=1)


def _scores(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the logarithm: finite scores whose softmax gives the probabilities back."""
    return probabilities.clamp_(min=torch.finfo(torch.float32).tiny).log_()


def _turned(values: torch.Tensor, turns: int, flipped: bool) -> torch.Tensor:
    """Reverse the columns if ``flipped``, then turn by ``turns`` quarters: (…, H, W) to (…, H, W) or (…, W, H)."""
    return torch.rot90(values.flip(-1) if flipped else values, turns, (-2, -1))


def _turned_back(values: torch.Tensor, turns: int, flipped: bool) -> torch.Tensor:
    """Undo :func:`_turned`."""
    values = torch.rot90(values, -turns, (-2, -1))
    return values.flip(-1) if flipped else values


def _turned_tiles(tiles: Tiles, turns: int, flipped: bool) -> Tiles:
    def turn(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else _turned(values, turns, flipped)

    return replace(
        tiles,
        pixels=_turned(tiles.pixels, turns, flipped),
        valid=_turned(tiles.valid, turns, flipped),
        prior=turn(tiles.prior),
    )


def _common_spec(specs: Sequence[Spec]) -> Spec:
    """Return what all members need at once.

    Raises:
        ConfigError: there are none, or they differ in bands, resolution, classes or view.
    """
    if not specs:
        raise ConfigError("an ensemble needs at least one member: give one or more models.")
    first = specs[0]
    for number, spec in enumerate(specs, start=1):
        if spec.classes is None:
            raise ConfigError(
                f"member {number} of the ensemble finds its classes in the scene: only fixed ones average."
            )
        for what, mine, other in zip(("bands", "resolution", "classes"), _offer(first), _offer(spec), strict=True):
            if mine != other:
                raise ConfigError(
                    f"member {number} of the ensemble has {what} {other} where member 1 has {mine}: "
                    f"all members need the same {what}."
                )
    views = {spec.view for spec in specs if spec.view is not None}
    if len(views) > 1:
        raise ConfigError("members of the ensemble need different views of a tile's surroundings: use one kind.")
    stride = math.lcm(*(spec.stride for spec in specs))
    halo = _up(max(spec.halo for spec in specs), stride)
    scalings = {spec.normalisation for spec in specs}
    return Spec(
        bands=first.bands,
        resolution=first.resolution,
        classes=first.classes,
        tile=_common_tile(specs, stride, halo),
        halo=halo,
        stride=stride,
        tile_exact=all(spec.tile_exact for spec in specs),
        bounded=any(spec.bounded for spec in specs) and not any(spec.fixed_tile for spec in specs),
        normalisation=scalings.pop() if len(scalings) == 1 else None,
        view=next(iter(views), None),
        needs_prior=any(spec.needs_prior for spec in specs),
        deterministic=all(spec.deterministic for spec in specs),
        probabilistic=all(spec.probabilistic for spec in specs),
        layers=tuple(name for name in first.layers if all(name in spec.layers for spec in specs)),
        scene_pass=any(spec.scene_pass for spec in specs),
    )


def _common_tile(specs: Sequence[Spec], stride: int, halo: int) -> int:
    """Return a tile for all: the fixed size of members that depend on it, else the largest; with room for a core."""
    fixed = [spec.tile for spec in specs if spec.fixed_tile]
    wanted = min(fixed) if fixed else max(spec.tile for spec in specs)
    return _up(max(wanted, 2 * halo + stride), stride)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _offer(spec: Spec) -> tuple[str, str, str]:
    """Return bands, resolution and classes (not their colours) as text to compare and to show."""
    classes = ", ".join(f"{c.id} {c.name}" + (" (background)" if c.background else "") for c in spec.classes or ())
    return ", ".join(spec.bands), "any" if spec.resolution is None else f"{spec.resolution:.6g} m", classes
