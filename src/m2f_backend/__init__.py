"""What the Python models import inside Triton's Python backend. Exported repositories import it by this name."""
