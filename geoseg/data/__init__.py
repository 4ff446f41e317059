"""The real sample scene that ships with the package; see its README for origin and licence."""
