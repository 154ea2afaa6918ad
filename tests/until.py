"""Wait for a condition."""

import time


def until(condition, timeout=30):
    """Return the value of a condition as soon as it is true."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value
