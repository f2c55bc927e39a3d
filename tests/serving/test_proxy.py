"""Two replicas behind a real HAProxy: one is lost, one is drained, and sessions that stay with one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.client import END, ids_of, tokens
from tests.serving.client import ask as ask_grpc
from tests.serving.conftest import Served, needs_triton
from tests.serving.replicas import CONFIG, NAMES, REQUESTS, TOKENS, Proxy, Replica, replicas, sessions, under_load

pytestmark = [
    needs_triton,
    pytest.mark.skipif(shutil.which("haproxy") is None, reason="no HAProxy here: apt-get install haproxy"),
]
SLOTS = 4  # of each replica: so many streams can have begun there


@pytest.fixture
def pair(engines: Path) -> Iterator[list[Replica]]:
    with replicas(engines) as running:
        yield running


@pytest.mark.parametrize("environment", [{}, {"STICKY": "1"}])
def test_haproxy_accepts_the_configuration(environment: dict[str, str], tmp_path: Path) -> None:
    text = CONFIG.read_text()
    for name in NAMES:
        assert text.count(f"    server {name} {name}:") == 3
        text = text.replace(f"{name}:", "127.0.0.1:")
    (tmp_path / "haproxy.cfg").write_text(text)
    command = ["haproxy", "-c", "-f", str(tmp_path / "haproxy.cfg")]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr


@pytest.mark.slow
def test_when_a_replica_is_killed_the_other_answers_all_that_had_not_begun(pair: list[Replica], tmp_path: Path) -> None:
    with Proxy(pair, tmp_path) as proxy:
        loss = under_load(proxy, pair[0], pair[0].kill)
    assert loss.fates["refused"] == loss.fates["hung"] == loss.fates["named"] == 0, loss.failures()
    assert 0 < loss.fates["broken"] <= SLOTS
    assert {outcome.replica for outcome in loss.outcomes if outcome.fate == "broken"} == {NAMES[0]}
    assert {outcome.tokens for outcome in loss.outcomes if outcome.fate == "answered"} == {TOKENS}
    assert loss.noticed < 10


@pytest.mark.slow
def test_when_a_rank_is_killed_streams_that_had_begun_end_with_an_error_that_names_it(
    pair: list[Replica], tmp_path: Path
) -> None:
    with Proxy(pair, tmp_path) as proxy:
        loss = under_load(proxy, pair[1], pair[1].kill_a_rank)
    assert loss.fates["refused"] == loss.fates["hung"] == loss.fates["broken"] == 0, loss.failures()
    said = {outcome.said for outcome in loss.outcomes if outcome.fate == "named"}
    assert 0 < loss.fates["named"] <= SLOTS and all("the engine is down: rank 1" in error for error in said)
    assert loss.status == 1


@pytest.mark.slow
def test_a_drained_replica_loses_nothing(pair: list[Replica], tmp_path: Path) -> None:
    with Proxy(pair, tmp_path) as proxy:
        loss = under_load(proxy, pair[0], pair[0].drain)
        assert ids_of(
            ask_grpc(
                Served(Path(), proxy.ports[1], proxy.ports[2], 0),
                "tensorrt_llm",
                tokens([5, 6, 7], 8, end_id=END, streaming=True),
            )
        )
    assert loss.fates == {"answered": REQUESTS}, loss.failures()
    assert {outcome.tokens for outcome in loss.outcomes} == {TOKENS}
    assert loss.status == 0


@pytest.mark.slow
def test_sessions_that_stay_with_one_replica_find_more_of_their_prompts(pair: list[Replica], tmp_path: Path) -> None:
    with Proxy(pair, tmp_path) as proxy:
        spread = sessions(proxy, header=False)
    for header in (True, False):
        (tmp_path / str(header)).mkdir()
        with Proxy(pair, tmp_path / str(header), sticky=True) as proxy:
            kept = sessions(proxy, header=header)
        assert kept.cached_tokens > 1.1 * spread.cached_tokens and len(kept.requests) == 2
