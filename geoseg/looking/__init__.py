"""A look at outputs without a GIS: web maps that need nothing else, and pictures."""
