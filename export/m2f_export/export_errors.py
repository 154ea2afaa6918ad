"""What `m2f export` reports instead of a traceback."""

from m2f.errors import M2FError


class ExportError(M2FError, RuntimeError):
    """The source cannot be used, or an artefact does not do what the one before it does.

    The message names the file, the key or the step, what was wrong, and what is allowed.
    """
