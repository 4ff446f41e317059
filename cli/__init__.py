"""The command line: each command parses, calls :mod:`geoseg`, and prints."""
