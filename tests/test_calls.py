"""Calls to a server: an error of the server, and a call that this machine cannot make."""

import errno
import socket

import pytest

from m2f_backend.calls import CallError, CannotCallError, fetch


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL])
def test_a_call_that_this_machine_lacks_something_for(monkeypatch, number):
    def none_left(*_, **__):
        raise OSError(number, "none left")

    monkeypatch.setattr(socket, "create_connection", none_left)
    with pytest.raises(CannotCallError, match="none left"):
        fetch("127.0.0.1:1", "GET", "/v2")


def test_a_server_that_is_not_there_or_silent():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(CallError, match="timed out") as caught:
            fetch(f"127.0.0.1:{port}", "GET", "/v2", timeout=0.1)
        assert type(caught.value) is CallError
    with pytest.raises(CallError, match="refused") as caught:
        fetch(f"127.0.0.1:{port}", "GET", "/v2")
    assert type(caught.value) is CallError
