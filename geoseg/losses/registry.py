"""The losses there are, by name: facts and import paths only, so that listing them imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from geoseg.errors import ConfigError, GeosegError, one_line, unknown_name
from geoseg.losses.entries import ENTRIES, LossInfo
from geoseg.losses.expression import Term, parse

if TYPE_CHECKING:
    from geoseg.losses.loss import Loss
    from geoseg.losses.weighted_sum import WeightedSum


def names() -> tuple[str, ...]:
    """Return the names :func:`create` knows.

    >>> "aaf" in names()
    True
    """
    return tuple(ENTRIES)


def info(name: str) -> LossInfo:
    """Return what is known of loss ``name`` without making it.

    >>> info("aaf").source
    'Ke et al. 2018, arXiv 1803.10335'

    Raises:
        ConfigError: there is no such loss.
    """
    if name not in ENTRIES:
        raise ConfigError(unknown_name("loss", name, ENTRIES))
    return ENTRIES[name].info


def create(expression: str, *, num_classes: int, ignore_index: int = 255, **options: Any) -> WeightedSum:
    """Make a loss, or a weighted sum of losses: a module called as ``loss(scores, target)`` that returns a scalar.

    Scores are logits (N, ``num_classes``, H, W), targets are integers (N, H, W).  Pixels whose target is
    ``ignore_index`` change neither the value nor any gradient; where no pixel counts, both are 0.

    Args:
        expression: names with weights, ``ce+0.5*aaf``; options of one loss in brackets, ``aaf[margin=2]``.
        num_classes: K, 2 or more.
        ignore_index: label of pixels without a class.
        options: passed to each loss of the sum that takes them; brackets win.

    Raises:
        ConfigError: a misshapen sum, unknown names or options, or a value that a loss refuses.
    """
    from geoseg.losses.weighted_sum import WeightedSum

    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise ConfigError(f"the number of classes of a loss is {num_classes!r}: give a whole number of 2 or more.")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int) or 0 <= ignore_index < num_classes:
        raise ConfigError(f"the ignored label is {ignore_index!r}: give a whole number that is no class's.")
    terms = parse(expression)
    known = {option for term in terms for option in ENTRIES[term.name].info.options}
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of loss {expression}", option, known))
    losses = [(term.name, term.weight, _made(term, options, num_classes, ignore_index)) for term in terms]
    return WeightedSum(losses)


def _made(term: Term, shared: dict[str, Any], num_classes: int, ignore_index: int) -> Loss:
    """Make the loss of one term, with those of the shared options that it takes."""
    entry = ENTRIES[term.name]
    given = {key: value for key, value in shared.items() if key in entry.info.options} | term.options
    module, _, kind = entry.module.partition(":")
    try:
        loss: Loss = getattr(import_module(module), kind)(num_classes, ignore_index, **entry.fixed, **given)
    except GeosegError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # a value of a type that the loss does not expect
        listed = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ConfigError(f"loss {term.name} cannot be made with {listed}: {one_line(error).rstrip('.')}.") from error
    return loss
