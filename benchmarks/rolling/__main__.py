"""Measure what replicas lose and carry: `python -m benchmarks.rolling`."""

import sys

from ..__main__ import main

sys.exit(main(("rolling", "balance")))
