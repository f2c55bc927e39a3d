"""One rank of a RemoteRuntime: `mpirun -n g python -m mpi4py -m trtllm_pt.runtime.worker ENGINE SOCKET`."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

from trtllm_pt.engine.manifest import EngineManifest
from trtllm_pt.errors import TrtllmPtError, UsageError
from trtllm_pt.messages import Request, Tokens
from trtllm_pt.runtime.rank import RankRuntime, open_rank
from trtllm_pt.runtime.remote import Connection

_POLL_SECONDS = 0.001  # how long a message of the owner may wait for an engine that is at work


def main() -> None:
    parser = argparse.ArgumentParser(prog="trtllm_pt.runtime.worker")
    parser.add_argument("engine", type=Path)
    parser.add_argument("socket")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv-tokens", type=int)
    arguments = parser.parse_args()
    try:
        manifest = EngineManifest.from_dir(arguments.engine)
        runtime = open_rank(arguments.engine, manifest, threads=arguments.threads, kv_tokens=arguments.kv_tokens)
        if runtime is not None:
            serve(runtime, arguments.socket)
            runtime.close()
    except TrtllmPtError as error:
        # All ranks may find the same fault: each says it, the owner reads the first, and the job ends.
        kind = "usage" if isinstance(error, UsageError) else "error"
        os.write(2, f"trtllm-pt: {kind}: {error}\n".encode())  # in one piece, or those of several ranks come mixed
        os._exit(error.exit_status)


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
                refusal = Tokens(id=request.id, finish_reason="error", error=str(error))
                connection.send({"tokens": refusal.to_json()})
        case {"cancel": int(request_id)}:
            runtime.cancel(request_id)
        case {"stats": _}:
            connection.send({"stats": runtime.stats().to_json()})


if __name__ == "__main__":
    main()
