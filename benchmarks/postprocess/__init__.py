"""Post-processing against the ways others do it: `python -m benchmarks.postprocess`, from the repository's root."""
