"""Networks: pixels in, scores out.  Made by name with :func:`create`; the modules are imported on use."""

from geoseg.networks.registry import NetworkInfo, create, every_name, info, names

__all__ = ["NetworkInfo", "create", "every_name", "info", "names"]
