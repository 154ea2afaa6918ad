"""Measure what to scale by, and simulate a fleet: `python -m benchmarks.autoscaling`."""

import sys

from ..__main__ import main

sys.exit(main(("autoscaling", "fleet")))
