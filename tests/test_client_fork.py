"""A process that has used a client may fork: the children make their own clients, and get answers."""

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
