"""Measure TCP round trips between two namespaces.

Run `python round_trip.py serve ADDRESS` in one namespace and `python round_trip.py ask ADDRESS` in the other, which
prints the median in seconds. This file does not import the package, so that it starts at once.
"""

import socket
import statistics
import sys
import time

_PORT, _TRIPS, _WORD = 5999, 300, b"8 bytes."


def serve(address: str) -> None:
    """Send every message of one client back."""
    with socket.create_server((address, _PORT)) as listener:
        print("ready", flush=True)
        stream = listener.accept()[0]
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while word := stream.recv(len(_WORD)):
            stream.sendall(word)


def ask(address: str) -> None:
    """Time the round trips of many messages, and print the median in seconds."""
    trips = []
    with socket.create_connection((address, _PORT)) as stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(_TRIPS):
            began = time.perf_counter()
            stream.sendall(_WORD)
            stream.recv(len(_WORD))
            trips.append(time.perf_counter() - began)
    print(statistics.median(trips))


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](sys.argv[2])
