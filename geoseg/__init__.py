"""Segment georeferenced rasters with any method, tile by tile, into class polygons without a seam."""

__version__ = "0.1.0"
