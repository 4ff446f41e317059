"""Adaptive affinity fields: neighbours of one class get equal probabilities, neighbours of two classes differ.

Source: Ke, Hwang, Liu, Yu 2018, arXiv 1803.10335, section 3, and the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, get_args

import torch
from torch import nn

from geoseg.errors import ConfigError, unknown_name
from geoseg.losses.cascade import shrunk
from geoseg.losses.loss import Loss, Target

IgnoreRule = Literal["authors", "one_sided"]
_DIRECTIONS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


@dataclass(frozen=True)
class AffinityParts:
    """What the loss is made of, each (S,) for the S sizes.

    Attributes:
        edge: weighted means over entries of which one side alone is of the entry's class.
        nonedge: the same over all other entries.
        n_edge: number of edge entries (pairs of pixels × classes).
        n_nonedge: number of the others.
    """

    edge: torch.Tensor
    nonedge: torch.Tensor
    n_edge: torch.Tensor
    n_nonedge: torch.Tensor


class AffinityFields(Loss):
    """Adaptive affinity fields, and plain affinity without its adversary.

    At each size s a pixel has 8 neighbours, at the corners and in the middle of the sides of a square of 2s + 1.  For
    every pair and class c the binary divergence KL from the neighbour's probability of c to the pixel's is taken.
    Where one of the two alone is labelled c, an edge, the loss is max(0, margin − KL), else it is KL.

    The tables ``edge_logits`` and ``nonedge_logits`` (K, S), through a softmax over the sizes, weight the terms by the
    class of the pixel.  They are an adversary: their gradients are negated, so that one optimizer lowers the loss by
    the network and raises it by them.  They must not decay.  They start at 0.

    Args:
        sizes: s, in cells of the (shrunk) labels.
        margin: least divergence wanted across an edge.
        lambda_edge: weight of the edge terms.
        lambda_nonedge: weight of the others.
        decay_base: the loss is multiplied with ``decay_base ** -progress``; ``progress`` runs from 0 to 1.
        adaptive: weight the sizes by the adversary; else each counts 1.
        ignore_rule: ``"authors"`` drops a pair also where the pixel opposite the neighbour is ignored or outside the
            image, as the authors' code does; ``"one_sided"`` asks for the two of the pair alone.
        label_stride: scores and labels are picked at every such pixel first.  The authors work at stride 8, whereas the
            networks here give scores at full resolution.
        eps: least probability.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        *,
        sizes: Sequence[int] | int = (1, 2, 3),
        margin: float = 3.0,
        lambda_edge: float = 1.0,
        lambda_nonedge: float = 1.0,
        decay_base: float = 10.0,
        adaptive: bool = True,
        ignore_rule: IgnoreRule = "authors",
        label_stride: int = 4,
        eps: float = 1e-4,
    ) -> None:
        super().__init__(num_classes, ignore_index)
        sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
        if not sizes or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sizes):
            raise ConfigError(f"the sizes of aaf are {sizes}: give whole numbers of 1 or more.")
        for name, value in (("margin", margin), ("lambda_edge", lambda_edge), ("lambda_nonedge", lambda_nonedge)):
            if not 0 <= value < inf:
                raise ConfigError(f"{name} of aaf is {value}: give a number of 0 or more.")
        if not 1 <= decay_base < inf:
            raise ConfigError(f"decay_base of aaf is {decay_base}: give a number of 1 (no decay) or more.")
        if not 0 < eps < 0.5:
            raise ConfigError(f"eps of aaf is {eps}: give a probability above 0 and below 0.5.")
        if isinstance(label_stride, bool) or not isinstance(label_stride, int) or label_stride < 1:
            raise ConfigError(f"label_stride of aaf is {label_stride!r}: give a whole number of 1 or more.")
        if ignore_rule not in get_args(IgnoreRule):
            raise ConfigError(unknown_name("ignore rule of aaf", str(ignore_rule), get_args(IgnoreRule)))
        self.sizes = sizes
        self.margin = margin
        self.lambda_edge = lambda_edge
        self.lambda_nonedge = lambda_nonedge
        self.decay_base = decay_base
        self.ignore_rule = ignore_rule
        self.label_stride = label_stride
        self.eps = eps
        self.progress = 0.0
        for name in ("edge_logits", "nonedge_logits"):
            table = nn.Parameter(torch.zeros(num_classes, len(sizes))) if adaptive else None
            self.register_parameter(name, table)

    def value(self, scores: torch.Tensor, target: Target) -> torch.Tensor:
        """Return λ₁ Σ edge + λ₂ Σ nonedge over the sizes, times the decay."""
        parts = self.parts(scores, target)
        total = self.lambda_edge * parts.edge.sum() + self.lambda_nonedge * parts.nonedge.sum()
        return self.decay_base**-self.progress * total

    def parts(self, scores: torch.Tensor, target: Target) -> AffinityParts:
        """Return the means and counts of each size, of what :meth:`prepared` returned."""
        assert target.labels is not None
        labels, valid = shrunk(target.labels, self.label_stride), shrunk(target.valid, self.label_stride)
        shares = shrunk(target.shares(scores.dtype), self.label_stride) > 0
        chances = torch.softmax(shrunk(scores, self.label_stride), dim=1)
        # Of two classes the second's probabilities and labels are the first's, turned round: all its terms are equal.
        same = 2 if self.num_classes == 2 else 1
        chances, shares = (each[:, : self.num_classes // same] for each in (chances, shares))
        # p and 1 − p are clamped apart.
        yes, no = chances.clamp(self.eps, 1), (1 - chances).clamp(self.eps, 1)
        found = []
        for index, size in enumerate(self.sizes):
            weights = [self._weight(table, labels, index) for table in (self.edge_logits, self.nonedge_logits)]
            flags = [
                _Flags(*_overlap(dy, dx, valid.shape[-2:]), *self._flags(shares, valid, dy, dx))
                for dy, dx in ((size * down, size * right) for down, right in _DIRECTIONS)
            ]
            n_edge, n_nonedge = (
                torch.stack([getattr(each, kind).sum() for each in flags]).sum() for kind in ("edge", "nonedge")
            )
            edge_sum, nonedge_sum = _Sums.apply(yes, no, *weights, flags, self.margin)
            found.append(
                (edge_sum / n_edge.clamp(min=1), nonedge_sum / n_nonedge.clamp(min=1), same * n_edge, same * n_nonedge)
            )
        return AffinityParts(*(torch.stack(values) for values in zip(*found, strict=True)))

    def _weight(self, table: Any, labels: torch.Tensor, index: int) -> torch.Tensor:
        """Return the weight of a size at every pixel, by the pixel's class: (N, 1, H, W)."""
        if table is None:
            return torch.ones_like(labels, dtype=torch.float32).unsqueeze(1)
        weights: torch.Tensor = torch.softmax(_Reversed.apply(table), dim=1)
        return weights[labels, index].unsqueeze(1)

    def _flags(self, shares: torch.Tensor, valid: torch.Tensor, dy: int, dx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which entries (N, K, h, w) of the pairs at (dy, dx) are edges, and which are none."""
        here, there = _overlap(dy, dx, valid.shape[-2:])
        counted = self._counted(valid, dy, dx)[..., here[0], here[1]].unsqueeze(1)
        differ = shares[..., here[0], here[1]] ^ shares[..., there[0], there[1]]
        return differ & counted, ~differ & counted

    def _counted(self, valid: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
        """Return the pixels (N, H, W) whose pair with the neighbour at (dy, dx) counts."""
        counted = valid & _moved(valid, dy, dx)
        return counted & _moved(valid, -dy, -dx) if self.ignore_rule == "authors" else counted


@dataclass(frozen=True)
class _Flags:
    """The pairs in one direction: where the pixels lie and where their neighbours do, and the kind of each entry."""

    here: tuple[slice, slice]
    there: tuple[slice, slice]
    edge: torch.Tensor
    nonedge: torch.Tensor

    def divergence(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Return KL, q and 1 − q of the neighbours, and the logarithms of both quotients; ``maps`` p, 1 − p, logs."""
        log_p, log_not_p = (each[..., self.here[0], self.here[1]] for each in maps[2:])
        q, not_q, log_q, log_not_q = (each[..., self.there[0], self.there[1]] for each in maps)
        first, second = log_q - log_p, log_not_q - log_not_p
        return torch.addcmul(q * first, not_q, second), q, not_q, first, second


class _Sums(torch.autograd.Function):
    """The weighted sums of the edge and of the other entries, direction by direction.

    The divergences are computed again for the gradient, which is written down: no map of a pair outlives its direction,
    and the many slices cost no gradient of full size each.
    """

    @staticmethod
    def forward(
        context: Any,
        yes: torch.Tensor,
        no: torch.Tensor,
        w_edge: torch.Tensor,
        w_nonedge: torch.Tensor,
        flags: list[_Flags],
        margin: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both sums for p and 1 − p (N, K, H, W) and the weights of the pixels (N, 1, H, W)."""
        context.save_for_backward(yes, no, w_edge, w_nonedge)
        context.flags, context.margin = flags, margin
        maps = (yes, no, yes.log(), no.log())
        edge_sum = nonedge_sum = yes.new_zeros(())
        for each in flags:
            divergence = each.divergence(maps)[0]
            here = (..., *each.here)
            edge_sum = edge_sum + (w_edge[here] * (margin - divergence).relu_() * each.edge).sum()
            nonedge_sum = nonedge_sum + (w_nonedge[here] * divergence * each.nonedge).sum()
        return edge_sum, nonedge_sum

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients by p, by 1 − p as if it were free, and by the weights."""
        yes, no, w_edge, w_nonedge = context.saved_tensors
        by_edge, by_nonedge = gradients
        maps = (yes, no, yes.log(), no.log())
        both, of_yes, of_no, neighbours_yes, neighbours_no = (torch.zeros_like(yes) for _ in range(5))
        of_weights = [torch.zeros_like(w_edge), torch.zeros_like(w_nonedge)]
        for each in context.flags:
            here, there = (..., *each.here), (..., *each.there)
            divergence, q, not_q, first, second = each.divergence(maps)
            left = (context.margin - divergence).relu_()
            if context.needs_input_grad[2]:
                of_weights[0][here] += (left * each.edge).sum(1, keepdim=True)
                of_weights[1][here] += (divergence * each.nonedge).sum(1, keepdim=True)
            # By the divergence; then d KL / dq = log(q / p) + 1, d KL / dp = −q / p, and so for 1 − q and 1 − p.
            slope = by_nonedge * w_nonedge[here] * each.nonedge - by_edge * w_edge[here] * (each.edge & (left > 0))
            both[there] += slope
            of_yes[there].addcmul_(slope, first)
            of_no[there].addcmul_(slope, second)
            neighbours_yes[here].addcmul_(slope, q)
            neighbours_no[here].addcmul_(slope, not_q)
        of_yes += both
        of_no += both
        of_yes -= neighbours_yes / yes
        of_no -= neighbours_no / no
        return of_yes, of_no, by_edge * of_weights[0], by_nonedge * of_weights[1], None, None


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is negated."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:
        """Return a view of the values."""
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """Return the gradient, negated."""
        return -gradients[0]


def _overlap(dy: int, dx: int, size: Sequence[int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return where the pixels lie that have a neighbour at (dy, dx) in an image, and where these neighbours do."""
    here, there = zip(*(_span(step, length) for step, length in zip((dy, dx), size, strict=True)), strict=True)
    return (here[0], here[1]), (there[0], there[1])


def _span(step: int, length: int) -> tuple[slice, slice]:
    least, most = max(0, -step), max(max(0, -step), length - max(0, step))
    return slice(least, most), slice(least + step, most + step) if most > least else slice(0, 0)


def _moved(flags: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """Return for every pixel the flag of its neighbour at (dy, dx), False outside."""
    moved = torch.zeros_like(flags)
    here, there = _overlap(dy, dx, flags.shape[-2:])
    moved[..., here[0], here[1]] = flags[..., there[0], there[1]]
    return moved
