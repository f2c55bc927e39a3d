"""Both sides of a socket may write at once, more than it holds, and neither waits for ever."""

from __future__ import annotations

import math
import socket
import threading
from typing import Any

import msgspec
import pytest

from trtllm_pt.requests.messages import FromRank0, Ready, Request, SamplingParams, Stats, Tokens, TokenScore, ToRank0
from trtllm_pt.runtime.remote import Connection


def pair(received: Any = Any) -> tuple[Connection[Any, Any], Connection[Any, Any]]:
    ours, theirs = socket.socketpair()
    return Connection(ours, received), Connection(theirs, received)


def test_both_sides_send_more_than_the_socket_holds() -> None:
    ours, theirs = pair()
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
    ours, theirs = pair()
    for number in range(3):
        theirs.send({"number": number})
    theirs.close()
    assert ours.receive(1) == [{"number": 0}, {"number": 1}, {"number": 2}]
    with pytest.raises(EOFError):
        ours.receive(1)
    with pytest.raises(ConnectionError):
        for _ in range(2):
            ours.send({})


SAMPLING = SamplingParams(
    max_tokens=2**63 - 1,
    temperature=0.1,
    seed=2**64 - 1,
    end_id=-1,
    stop_token_ids=(8, 9),
    stop_words=((1, 2), (3,)),
    logit_bias=((4, -0.5), (5, 2.0)),
    bad_words=((4,),),
    include_stop_words=True,
    log_probs=True,
    top_log_probs=3,
    processed_log_probs=True,
    prompt_log_probs=True,
    priority=-(2**31),
    cache_salt="é",
)
COUNTS = {field.name: number for number, field in enumerate(msgspec.structs.fields(Stats))}
TO_RANK_0: list[ToRank0] = [Request(id=1, token_ids=(5, 6)), Request(id=2, token_ids=(7,), sampling=SAMPLING)]
FROM_RANK_0: list[FromRank0] = [
    Ready([1, 2], ["a", "b"]),
    Tokens(id=1),
    Tokens(id=2, token_ids=(5, 6), log_probs=(-math.inf, -0.1), cached_tokens=3, finish_reason="error", error="é"),
    Tokens(
        id=3,
        token_ids=(5,),
        log_probs=(-0.5,),
        top_log_probs=(((5, -0.5), (7, -1.5)),),
        prompt_scores=(TokenScore(-2.0, ((1, -1.0),)), TokenScore(-3.0)),
    ),
    Stats(**COUNTS),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("kind", "messages"), [(ToRank0, TO_RANK_0), (FromRank0, FROM_RANK_0)])
def test_messages_arrive_as_they_were_sent(kind: Any, messages: list[Any]) -> None:
    ours, theirs = pair(kind)
    for message in messages:
        ours.send(message)
    received = theirs.receive(1)
    assert received == messages
    assert [type(message) for message in received] == [type(message) for message in messages]


def test_a_message_may_arrive_in_parts() -> None:
    stream, theirs = socket.socketpair()
    connection: Connection[Any, Any] = Connection(theirs, Any)
    body = msgspec.msgpack.encode([1, 2, 3])
    data = len(body).to_bytes(4, "little") + body
    for byte in data[:-1]:
        stream.send(bytes([byte]))
        assert connection.receive(1) == []
    stream.send(data[-1:] + data[:3])
    assert connection.receive(1) == [[1, 2, 3]]
    assert connection.receive(0) == []
