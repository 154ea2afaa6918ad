"""The error that `m2f export` and `m2f doctor` report instead of a traceback."""

from m2f.errors import M2FError


class ExportError(M2FError, RuntimeError):
    """The source cannot be used, or an artefact differs from the artefact before it.

    The message names the file, the key or the step, what was wrong, and what is allowed.
    """
