"""A process that has used a client may fork: the children get answers, from their own clients and from its."""

import subprocess
import sys
import textwrap

from fake_triton import SCHEMES, fake_triton

WORK = textwrap.dedent("""
    import multiprocessing, sys, threading
    from m2f_client import Client

    def keep_asking(client):
        while True:
            client.predict(b"x")

    def work(_):
        with Client(sys.argv[1], timeout=30) as client:
            return client.class_names, len(client.predict(b"x"))

    if __name__ == "__main__":
        used = Client(sys.argv[1], timeout=30)
        print(used.class_names, len(used.predict(b"x")))
        if sys.argv[1].startswith("http"):  # over gRPC no call may be in flight
            threading.Thread(target=keep_asking, args=[used], daemon=True).start()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(*pool.map(work, range(2)))
        print(used.class_names, len(used.predict(b"x")))
""")


@SCHEMES
def test_forked_workers_get_answers(scheme):
    with fake_triton(scheme) as server:
        ran = subprocess.run([sys.executable, "-c", WORK, server.url], capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == ["('cat',) 1", "(('cat',), 1) (('cat',), 1)", "('cat',) 1"], ran.stderr


INHERIT = textwrap.dedent("""
    import os, sys
    from m2f_client import Client

    client = Client(sys.argv[1], timeout=30)
    assert len(client.predict(b"x")) == 1
    for _ in range(2):
        if not (child := os.fork()):
            with client:
                client.predict(b"x")
                os._exit(len(client.predict(b"x")))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(len(client.predict(b"x")))
""")


@SCHEMES
def test_a_child_that_uses_its_parents_client_has_connections_of_its_own(scheme):
    """Two processes on one connection would read each other's answers; a child that closes it would cut it off."""
    with fake_triton(scheme) as server:
        ran = subprocess.run([sys.executable, "-c", INHERIT, server.url], capture_output=True, text=True, check=False)
        assert ran.stdout.split() == ["1", "1", "1"], ran.stderr
        assert len(server.peers) == 3
