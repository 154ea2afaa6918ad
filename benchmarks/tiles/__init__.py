"""Pictures in tiles, against the scenes they are made of and against SAHI: `python -m benchmarks.tiles`."""
