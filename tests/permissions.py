"""Run a part of a test as a user who may not read everything."""

import contextlib
import os

NOBODY = 65534
_OPEN = 0o055  # to the group too: it stays root's


@contextlib.contextmanager
def unprivileged(folder):
    """Be nobody for the length of the block if the tests run as root; the way to `folder` is opened to all."""
    if os.geteuid() != 0:
        yield
        return
    for parent in (folder, *folder.parents):
        mode = parent.stat().st_mode
        if mode | _OPEN != mode:
            parent.chmod(mode | _OPEN)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
