"""What a call takes."""

import tracemalloc


def peak_of(work):
    """What `work()` returns, and how many bytes it held at most."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
