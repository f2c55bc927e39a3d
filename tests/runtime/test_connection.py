"""Both sides of a socket may write at once, more than it holds, and neither waits for ever."""

from __future__ import annotations

import socket
import threading

import pytest

from trtllm_pt.runtime.remote import Connection


def test_both_sides_send_more_than_the_socket_holds() -> None:
    ours, theirs = map(Connection, socket.socketpair())
    heard = 0

    def answer() -> None:
        nonlocal heard
        while heard < 500:
            heard += len(theirs.receive(None))
            for _ in range(16):
                theirs.send({"token": "x" * 200})

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    for _ in range(500):
        ours.send({"prompt": [1] * 1000})
    got = 0
    while thread.is_alive():
        got += len(ours.receive(0.01))
    assert heard == 500
    assert got > 16


def test_what_came_before_the_end_is_received() -> None:
    ours, theirs = map(Connection, socket.socketpair())
    for number in range(3):
        theirs.send({"number": number})
    theirs.close()
    assert ours.receive(1) == [{"number": 0}, {"number": 1}, {"number": 2}]
    with pytest.raises(EOFError):
        ours.receive(1)
    with pytest.raises(ConnectionError):
        for _ in range(2):
            ours.send({})
