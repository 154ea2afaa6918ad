"""Find in Triton's log why the server did not start."""

import re

from m2f_server.serve_errors import ModelLoadError, PortTakenError, ServeError, ServerCrashedError

_LOAD = re.compile(r"failed to load (?:model )?'(?P<name>[^']+)'(?: version \d+)?: (?P<reason>.*?)\"?$", re.MULTILINE)
_BEGUN = re.compile(r"\bloading: (?P<name>.+):\d+\"?$", re.MULTILINE)
_LOADED = re.compile(r"successfully loaded '(?P<name>[^']+)'")
_POLL = re.compile(r"Poll failed for model directory '(?P<name>[^']+)': (?P<reason>.*?)\"?$", re.MULTILINE)
_PARSE = re.compile(r"Error parsing text-format \S+: (?P<reason>.*)$", re.MULTILINE)
_SOCKET = re.compile(
    r"failed to start (?P<protocol>\w+) service: .*Socket '(?:ipv6:)?\[?(?P<host>.*?)\]?:(?P<port>\d+)' already in use"
)
_HINTS = {  # what to do about a reason
    re.compile(r"config\.pbtxt: No such file or directory"): (
        "Triton takes every folder in a repository for a model: move this one out."
    ),
    re.compile("unable to find backend library"): (
        "This tritonserver has no such backend: use --config-name cpu, or run inside NVIDIA's container."
    ),
    re.compile(r"No module named 'm2f[_.]|cannot import name '\w+' from 'm2f[_.]"): (
        "Another version of m2f wrote this repository: export it again."
    ),
}
_NOISE = re.compile(r"\s*($|[+|]|\d+# )")  # an empty line, a table, a stack frame without names
_TAIL_LINES = 15


def diagnose(*, log: str, returncode: int) -> ServeError:
    """Return the error that explains why a server ended.

    Args:
        log: the server's log.
        returncode: the server's exit code, negative for a signal.
    """
    if socket := _SOCKET.search(log):
        return PortTakenError(protocol=socket["protocol"].lower(), host=socket["host"], port=int(socket["port"]))
    if failures := model_failures(log):
        return ModelLoadError(failures)
    return ServerCrashedError(returncode=returncode, log_tail=tail(log))


def model_failures(log: str) -> dict[str, str]:
    """Return the reason for each model that failed, causes before the ensembles that depend on them."""
    parse_errors = [found["reason"] for found in _PARSE.finditer(log)]
    failures: dict[str, str] = {}
    for found in _POLL.finditer(log):
        reason = found["reason"]
        if parse_errors and "text proto" in reason:
            reason += f": line:column {parse_errors.pop(0)}"
        failures.setdefault(found["name"], one_line(reason))
    for found in _LOAD.finditer(log):
        failures.setdefault(found["name"], one_line(found["reason"]))
    return dict(sorted(failures.items(), key=lambda item: "depends on" in item[1]))


def unfinished(log: str) -> list[str]:
    """Return the models whose load has begun and not ended, in the order of the log."""
    ended = {found["name"] for pattern in (_LOADED, _LOAD) for found in pattern.finditer(log)}
    begun = dict.fromkeys(found["name"] for found in _BEGUN.finditer(log))
    return [name for name in begun if name not in ended]


def tail(log: str) -> str:
    """Return the last 15 lines of a log, without noise."""
    lines = [line for line in log.splitlines() if not _NOISE.match(line)]
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])


def one_line(reason: str) -> str:
    """Return a reason in one line, with a hint what to do. A traceback is cut to its message and innermost place."""
    message, at, places = reason.replace("\\n", "\n").partition("\nAt:\n")
    text = " ".join(message.split()).removeprefix("Internal: ")
    if at:
        text += f" (at {places.strip().splitlines()[0].strip()})"
    return " ".join([text, *(hint for pattern, hint in _HINTS.items() if pattern.search(text))])
