"""Raise the limit of open files: each connection of a client is one."""

import resource

WANTED = 8192  # connections of a thousand clients at once, and the files of many models
_KIND = resource.RLIMIT_NOFILE


def raise_limit(pid: int = 0) -> int:
    """Raise a process's soft limit of open files to its hard limit, and return the limit.

    The usual soft limit, 1,024, is for programs that use `select`.

    Args:
        pid: process id; 0 is this process.
    """
    _, hard = resource.prlimit(pid, _KIND)
    resource.prlimit(pid, _KIND, (hard, hard))
    return hard
