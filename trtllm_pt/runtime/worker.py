"""One rank of a RemoteRuntime: `mpirun -n g python -m mpi4py -m trtllm_pt.runtime.worker ENGINE SOCKET`."""

from __future__ import annotations

import argparse
import logging
import socket
from pathlib import Path

from trtllm_pt import logs
from trtllm_pt.backends.backend import RankRuntime
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.errors import UsageError
from trtllm_pt.job.last_words import last_words
from trtllm_pt.requests.messages import Request, Tokens
from trtllm_pt.runtime.remote import Connection

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.001  # how long a message of the owner may wait for an engine that is at work


def main() -> None:
    parser = argparse.ArgumentParser(prog="trtllm_pt.runtime.worker")
    parser.add_argument("engine", type=Path)
    parser.add_argument("socket")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv-tokens", type=int)
    arguments = parser.parse_args()
    logs.set_up_from_environment()
    with last_words():
        manifest = read_engine(arguments.engine)
        manifest.backend.check_versions(arguments.engine, manifest)
        limits = {"threads": arguments.threads, "kv_tokens": arguments.kv_tokens}
        runtime = manifest.backend.open_rank(arguments.engine, manifest, **limits)
        if runtime is not None:
            log.info("ranks ready", extra=logs.fields(engine=arguments.engine, processes=runtime.pids))
            serve(runtime, arguments.socket)
            runtime.close()


def serve(runtime: RankRuntime, path: str) -> None:
    """Answer the owner's messages until it goes away."""
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.connect(path)
        connection = Connection(stream)
        connection.send({"ready": runtime.pids})
        while True:
            for message in connection.receive(0 if runtime.busy else None):
                _answer(runtime, connection, message)
            for tokens in runtime.poll(_POLL_SECONDS):
                connection.send({"tokens": tokens.to_json()})
    except (EOFError, OSError):  # the owner is gone, perhaps since before we were ready
        return


def _answer(runtime: RankRuntime, connection: Connection, message: dict[str, object]) -> None:
    match message:
        case {"submit": dict(data)}:
            request = Request.from_json(data)
            try:
                runtime.submit(request)
            except UsageError as error:
                refusal = Tokens(id=request.id, finish_reason="invalid", error=str(error))
                connection.send({"tokens": refusal.to_json()})
        case {"cancel": int(request_id)}:
            runtime.cancel(request_id)
        case {"stats": _}:
            connection.send({"stats": runtime.stats().to_json()})


if __name__ == "__main__":
    main()
