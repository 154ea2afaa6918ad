"""What `m2f export` reports instead of a traceback."""


class ExportError(RuntimeError):
    """The source cannot be used, or an artefact does not do what the one before it does.

    The message names the file, the key or the step, what was wrong, and what is allowed.
    """
