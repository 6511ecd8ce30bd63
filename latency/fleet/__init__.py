"""Profiling on many devices of one kind at once, through Dask; see README.md in this folder."""
