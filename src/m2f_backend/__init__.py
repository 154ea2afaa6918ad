"""The code of the Python models inside Triton. Exported repositories import it by this name."""
