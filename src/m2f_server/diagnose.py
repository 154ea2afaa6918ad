"""Read a Triton log for the reason why the server did not come up."""

import re

from m2f_server.serve_errors import ModelLoadError, PortTakenError, ServeError, ServerCrashedError

_LOAD = re.compile(r"failed to load (?:model )?'(?P<name>[^']+)'(?: version \d+)?: (?P<reason>.*?)\"?$", re.MULTILINE)
_POLL = re.compile(r"Poll failed for model directory '(?P<name>[^']+)': (?P<reason>.*?)\"?$", re.MULTILINE)
_PARSE = re.compile(r"Error parsing text-format \S+: (?P<reason>.*)$", re.MULTILINE)
_SOCKET = re.compile(r"failed to start (?P<protocol>\w+) service: .*Socket '(?P<host>.*):(?P<port>\d+)' already in use")
_NO_BACKEND = "unable to find backend library"
_NOISE = re.compile(r"\s*($|[+|]|\d+# )")  # nothing, a table, a frame of a stack without names
_TAIL_LINES = 15


def diagnose(*, log: str, returncode: int) -> ServeError:
    """Turn the log of a server that ended with `returncode` into the error to raise."""
    if socket := _SOCKET.search(log):
        return PortTakenError(protocol=socket["protocol"].lower(), host=socket["host"], port=int(socket["port"]))
    if failures := model_failures(log):
        return ModelLoadError(failures)
    return ServerCrashedError(returncode=returncode, log_tail=tail(log))


def model_failures(log: str) -> dict[str, str]:
    """Return model name to reason, root causes before the ensembles that only depend on them."""
    parse_errors = [found["reason"] for found in _PARSE.finditer(log)]
    failures: dict[str, str] = {}
    for found in _POLL.finditer(log):
        reason = found["reason"]
        if parse_errors and "text proto" in reason:
            reason += f": line:column {parse_errors.pop(0)}"
        failures.setdefault(found["name"], reason)
    for found in _LOAD.finditer(log):
        failures.setdefault(found["name"], one_line(found["reason"]))
    return dict(sorted(failures.items(), key=lambda item: "depends on" in item[1]))


def tail(log: str) -> str:
    """Return the last lines of a log that say something."""
    lines = [line for line in log.splitlines() if not _NOISE.match(line)]
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:])


def one_line(reason: str) -> str:
    """Shorten a reason: of a Python traceback the message and the innermost place stay."""
    message, at, places = reason.replace("\\n", "\n").partition("\nAt:\n")
    text = " ".join(message.split()).removeprefix("Internal: ")
    if at:
        text += f" (at {places.strip().splitlines()[0].strip()})"
    if _NO_BACKEND in text:
        text += " This tritonserver has no such backend: use --config-name cpu, or run inside NVIDIA's container."
    return text
