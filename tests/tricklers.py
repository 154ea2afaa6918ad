"""A client that holds thousands of connections to a port and sends a byte on each now and then.

Run as a program: `python tricklers.py PORT CONNECTIONS SECONDS PAUSE`. It opens a connection again that the server
closes, and prints how many it opened.
"""

import heapq
import resource
import selectors
import socket
import sys
import time

REQUEST = b"GET /ready HTTP/1.1\r\nHost: m2f\r\nX: "


def trickle(port: int, connections: int, seconds: float, pause: float) -> int:
    """Hold connections for some seconds; return how many were opened in all.

    Args:
        port: port on loopback.
        connections: number of connections at once.
        seconds: how long.
        pause: seconds between two bytes on a connection.
    """
    opened, sent = 0, {}
    selector = selectors.DefaultSelector()
    end = time.monotonic() + seconds
    due = [(time.monotonic(), number, None) for number in range(connections)]
    while time.monotonic() < end:
        for key, _ in selector.select(0):
            _close(selector, sent, key.fileobj)  # the server has closed it, or answers
        while due and due[0][0] <= time.monotonic():
            _, number, connection = heapq.heappop(due)
            if connection is None or connection not in sent:
                connection = socket.socket()
                connection.setblocking(False)
                connection.connect_ex(("127.0.0.1", port))
                selector.register(connection, selectors.EVENT_READ)
                sent[connection] = 0
                opened += 1
            elif not _send(connection, sent):
                _close(selector, sent, connection)
            heapq.heappush(due, (time.monotonic() + pause, number, connection))
        time.sleep(0.005)
    return opened


def _send(connection, sent):
    try:
        byte = REQUEST[sent[connection]] if sent[connection] < len(REQUEST) else ord("x")
        connection.send(bytes([byte]))
    except BlockingIOError:  # still being opened
        return True
    except OSError:
        return False
    sent[connection] += 1
    return True


def _close(selector, sent, connection):
    if connection in sent:
        selector.unregister(connection)
        connection.close()
        del sent[connection]


def main():
    port, connections, seconds, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(trickle(port, connections, seconds, pause))


if __name__ == "__main__":
    main()
