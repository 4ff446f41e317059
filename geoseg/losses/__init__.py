"""Losses: from scores and targets to a scalar.  Made by name with :func:`create`; the modules are imported on use."""

from geoseg.losses.registry import LossInfo, create, info, names

__all__ = ["LossInfo", "create", "info", "names"]
