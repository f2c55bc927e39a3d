"""What tests of serving share: whether the server is here, an engine, and a server over it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from trtllm_pt.serving.triton.server import free_ports

QUEUE = 8
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("pytriton") is None or importlib.util.find_spec("tritonclient") is None,
    reason="no Triton here: pip install -e '.[embedded,dev,serve]'",
)


@dataclass(frozen=True)
class Served:
    """A running server over `engines`."""

    engines: Path
    http: int
    grpc: int
    metrics: int


@pytest.fixture(scope="session")
def engines(engine: Callable[[str], Path]) -> Path:
    """The model of the repository on two ranks, with 4 slots."""
    return engine("served")


@pytest.fixture(scope="session")
def served(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("server")
    with running(engines, root) as (served, server):
        yield served
        assert server.close() == 0, "a model did not unload: somebody holds one of its requests"


@pytest.fixture(scope="session")
def proxy(served: Served) -> Iterator[Served]:
    """The same server through the HTTP port of `serve`."""
    from trtllm_pt.serving.triton.http_proxy import HttpProxy

    [port] = free_ports(1)
    with HttpProxy(f"http://127.0.0.1:{served.http}").listening("127.0.0.1", port):
        yield replace(served, http=port)


@contextmanager
def running(engines: Path, root: Path, queue: int = QUEUE) -> Iterator[tuple[Served, Any]]:
    """A server, ready, with its files below `root`."""
    from trtllm_pt.serving.triton.repository import write_repository
    from trtllm_pt.serving.triton.server import Address, Server

    write_repository(engines, root / "repository", max_queue_size=queue)
    http, grpc, metrics = free_ports(3)
    with Server(root / "repository", Address(http=http, grpc=grpc, metrics=metrics), root / "log") as server:
        server.wait_until_ready()
        yield Served(engines, http, grpc, metrics), server
