"""Measure pictures in tiles: `python -m benchmarks.tiles`."""

import sys

from ..__main__ import main

sys.exit(main(("tiles.mosaics", "tiles.offsets", "tiles.large")))
