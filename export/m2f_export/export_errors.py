"""The error that `m2f export` and `m2f doctor` report instead of a traceback."""

from m2f.errors import M2FError

_LONGEST = 400  # characters of a foreign message: some list every key of a checkpoint


class ExportError(M2FError, RuntimeError):
    """The source cannot be used, or an artefact differs from the artefact before it.

    The message names the file, the key or the step, what was wrong, and what is allowed.
    """


def reason(error: BaseException) -> str:
    """Return the message of another library's error on one line, with its type where the message alone says little."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, KeyError | AttributeError | IndexError | AssertionError):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
