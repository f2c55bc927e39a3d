"""The program of one rank of a RemoteRuntime, which starts it under mpirun with the arguments ENGINE and SOCKET."""

from __future__ import annotations

import argparse
import logging
import os
import socket
from pathlib import Path

from trtllm_pt import logs
from trtllm_pt.backends.backend import RankRuntime
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.errors import UsageError
from trtllm_pt.job.last_words import last_words
from trtllm_pt.requests.messages import AskStats, Cancel, FromRank0, Ready, Request, Tokens, ToRank0
from trtllm_pt.runtime.remote import Connection

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.001  # how long rank 0 waits for tokens before it reads the owner's messages again


def main() -> None:
    parser = argparse.ArgumentParser(prog="trtllm_pt.runtime.worker")
    parser.add_argument("engine", type=Path)
    parser.add_argument("socket")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--kv-tokens", type=int)
    parser.add_argument("--draft-tokens", type=int, default=0)
    arguments = parser.parse_args()
    logs.set_up_from_environment()
    if not os.path.isdir(os.environ.get("TMPDIR", "/")):
        del os.environ["TMPDIR"]  # the owner's folder, which its other machines do not have
    with last_words():
        manifest = read_engine(arguments.engine)
        manifest.backend.check_versions(arguments.engine, manifest)
        runtime = manifest.backend.open_rank(
            arguments.engine,
            manifest,
            threads=arguments.threads,
            kv_tokens=arguments.kv_tokens,
            draft_tokens=arguments.draft_tokens,
        )
        if runtime is not None:
            log.info("ranks ready", extra=logs.fields(engine=arguments.engine, processes=runtime.pids))
            serve(runtime, arguments.socket)
            runtime.close()


def serve(runtime: RankRuntime, path: str) -> None:
    """Answer the owner's messages on the socket at `path` until the owner closes it. Only rank 0 calls this."""
    stream = socket.socket(socket.AF_UNIX)
    try:
        stream.connect(path)
        connection: Connection[ToRank0, FromRank0] = Connection(stream, ToRank0)
        connection.send(Ready(runtime.pids, runtime.hosts))
        while True:
            for message in connection.receive(0 if runtime.busy else None):
                _answer(runtime, connection, message)
            for tokens in runtime.poll(_POLL_SECONDS):
                connection.send(tokens)
    except (EOFError, OSError):  # the owner has exited, perhaps before this rank was ready
        return


def _answer(runtime: RankRuntime, connection: Connection[ToRank0, FromRank0], message: ToRank0) -> None:
    match message:
        case Request():
            try:
                runtime.submit(message)
            except UsageError as error:
                connection.send(Tokens(id=message.id, finish_reason="invalid", error=str(error)))
        case Cancel():
            runtime.cancel(message.id)
        case AskStats():
            connection.send(runtime.stats())


if __name__ == "__main__":
    main()
