"""A server that does not answer is frozen, or busy: real processes that behave like either."""

import subprocess
import sys
import time

import pytest

from m2f_server import pulse
from m2f_server.pulse import Pulse
from m2f_server.timing import Timing

LISTEN = """
import signal, socket, sys, threading
listener = socket.create_server(("127.0.0.1", 0))
def say():
    while True:
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
        connection.close()
"""
READY = "print(listener.getsockname()[1], flush=True)\n"
SERVERS = {
    "answers": READY + "say()",
    "does nothing": READY + "signal.pause()",
    "computes": READY + "while True: pass",
    "handles SIGABRT": "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGABRT})\n" + READY + "signal.pause()",
    "handles two": "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGABRT, signal.SIGSEGV})\n"
    + READY
    + "while True: pass",
    "blocks every signal": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
    + READY
    + "while True: pass",
    "answers when told": READY + "sys.stdin.readline()\nsay()",
}
FAST = Timing(pulse_period_s=0.05, pulse_timeout_s=0.05, last_words_s=0.05, quiet_s=0.15)


@pytest.fixture
def start():
    """Start a server that behaves in a way; returns its pulse and the process."""
    started = []

    def start(behaviour):
        program = [sys.executable, "-c", LISTEN + SERVERS[behaviour]]
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        port = int(process.stdout.readline())
        return Pulse(f"127.0.0.1:{port}", process.pid, FAST), process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def beats(own, until, *, timeout=30.0, loading=False):
    """Let it beat until something holds."""
    deadline = time.monotonic() + timeout
    while not until():
        if time.monotonic() > deadline:
            return False
        own.beat(loading=loading)
        time.sleep(0.01)
    return True


@pytest.mark.parametrize(
    ("behaviour", "trouble"),
    [
        ("handles SIGABRT", "tritonserver hangs while it handles SIGABRT"),
        ("handles two", "tritonserver hangs while it handles SIGSEGV"),
        ("does nothing", "tritonserver does nothing, and has not answered for"),
    ],
)
def test_a_frozen_server(start, behaviour, trouble):
    own, _ = start(behaviour)
    assert beats(own, lambda: own.trouble)
    assert beats(own, lambda: own.frozen)
    assert own.trouble.startswith(trouble)


@pytest.mark.parametrize("behaviour", ["answers", "computes", "blocks every signal"])
def test_a_server_that_answers_or_works_is_not_frozen(start, behaviour):
    own, _ = start(behaviour)
    assert not beats(own, lambda: own.frozen or own.trouble, timeout=0.5)


def test_a_server_that_loads_a_model_may_be_quiet(start):
    own, _ = start("does nothing")
    assert not beats(own, lambda: own.frozen or own.trouble, timeout=0.5, loading=True)


def test_a_server_that_answers_again_is_well(start):
    own, process = start("answers when told")
    assert beats(own, lambda: own.trouble)
    process.stdin.write("\n")
    process.stdin.flush()
    assert beats(own, lambda: not own.trouble)


def test_a_shortage_here_says_nothing_about_the_server(start, monkeypatch):
    own, _ = start("does nothing")

    def none_left(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(pulse.socket, "socket", none_left)
    for _ in range(5):
        with pytest.raises(OSError, match="Too many"):
            own.beat(loading=False)
    assert not own.trouble
