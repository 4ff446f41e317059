"""Files that leave the program: polygons, rasters, QGIS styles."""
