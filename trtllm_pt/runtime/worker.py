"""One rank of a RemoteRuntime: `mpirun -n g python -m mpi4py -m trtllm_pt.runtime.worker ENGINE SOCKET`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from trtllm_pt import logs
from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.backends.open_rank import RankRuntime, open_rank
from trtllm_pt.errors import RunError, TrtllmPtError, UsageError
from trtllm_pt.job.launchers import launched_rank
from trtllm_pt.requests.messages import Request, Tokens
from trtllm_pt.runtime.remote import Connection

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.001  # how long a message of the owner may wait for an engine that is at work
_MPIRUN_SECONDS = 3.0  # in which mpirun sees that a rank is dead, and ends the others


def main() -> None:
    parser = argparse.ArgumentParser(prog="trtllm_pt.runtime.worker")
    parser.add_argument("engine", type=Path)
    parser.add_argument("socket")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv-tokens", type=int)
    arguments = parser.parse_args()
    logs.set_up_from_environment()
    with last_words():
        manifest = EngineManifest.from_dir(arguments.engine)
        runtime = open_rank(arguments.engine, manifest, threads=arguments.threads, kv_tokens=arguments.kv_tokens)
        if runtime is not None:
            log.info("ranks ready", extra=logs.fields(engine=arguments.engine, processes=runtime.pids))
            serve(runtime, arguments.socket)
            runtime.close()


@contextlib.contextmanager
def last_words() -> Iterator[None]:
    """Ends this rank, and so the job, on an error, which the owner then reads."""
    try:
        yield
    except TrtllmPtError as error:
        # All ranks may find the same fault: each says it, the owner reads the first, and the job ends.
        _end("usage" if isinstance(error, UsageError) else "error", str(error), error.exit_status)
    except Exception as error:
        # A rank whose partner is dead may hear of it from MPI before mpirun does, which alone knows who died, and how.
        time.sleep(_MPIRUN_SECONDS)
        traceback.print_exc()
        who = f"rank {launched_rank()} (process {os.getpid()})"
        _end("error", f"{who} failed: {' '.join(str(error).split())}", RunError.exit_status)


def _end(kind: str, text: str, status: int) -> None:
    os.write(2, f"trtllm-pt: {kind}: {text}\n".encode())  # in one piece, or those of several ranks come mixed
    os._exit(status)


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
