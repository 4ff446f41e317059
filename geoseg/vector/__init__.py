"""Raster to polygons."""
