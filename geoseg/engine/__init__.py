"""The run: chunks through a segmenter on Dask workers, into the chunk store, out to files."""
