"""A running engine in processes of its own: all ranks run under one mpirun, and a Unix socket leads to rank 0.

The owner, which is the process that holds the RemoteRuntime, survives the death of a rank, and the ranks exit when
their owner does. So `LLM`, the command line and Triton's engine model all run engines of several ranks this way.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.errors import RunError, TrtllmPtError, UsageError
from trtllm_pt.files.scratch import Scratch
from trtllm_pt.job.first_exit import FirstExit, first_exit
from trtllm_pt.job.hosts import Hosts
from trtllm_pt.job.last_words import read_last_words
from trtllm_pt.job.mpirun import find_mpirun, launch, no_mpi
from trtllm_pt.job.process import end, last_line
from trtllm_pt.job.python import module_command
from trtllm_pt.job.shared_memory import BYTES_PER_RANK, check_shared_memory
from trtllm_pt.requests.messages import (
    CLOSED,
    AskStats,
    Cancel,
    FromRank0,
    Ready,
    Request,
    Stats,
    Tokens,
    ToRank0,
)

_MISSING_MPI = "no libmpi|cannot load MPI|No module named '?mpi4py"  # what a rank without MPI prints
_LONGEST_FOLDER = 95  # characters: the path of a socket in it can have at most 107
_LOST_SECONDS = 1.0  # how long a job on several hosts has to exit after a rank has reported an error
_LOG_SECONDS = 0.02  # between two looks at the log of a job that ends
_LENGTH = struct.Struct("<I")  # bytes of the message that follows
Received = TypeVar("Received")
Sent = TypeVar("Sent")


class Connection(Generic[Received, Sent]):
    """Sends and receives messages over a stream socket, each as its length in four bytes and then MessagePack.

    received: the type of the messages that the other side sends; a union of tagged Structs.
    """

    def __init__(self, stream: socket.socket, received: Any) -> None:
        self.stream = stream
        self.stream.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(stream, selectors.EVENT_READ)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Received] = msgspec.msgpack.Decoder(received)
        self._received = bytearray()
        self._ended = False

    def send(self, message: Sent) -> None:
        """Send one message. Raises ConnectionError if the other side has closed the socket."""
        body = self._encoder.encode(message)
        data = memoryview(_LENGTH.pack(len(body)) + body)
        self._selector.modify(self.stream, selectors.EVENT_READ | selectors.EVENT_WRITE)
        try:
            while data:
                self._selector.select()
                self._read()  # the other side may be blocked in sending to us
                with contextlib.suppress(BlockingIOError):
                    data = data[self.stream.send(data) :]
        finally:
            self._selector.modify(self.stream, selectors.EVENT_READ)

    def receive(self, timeout: float | None) -> list[Received]:
        """Return the messages that have arrived, after waiting for the first one.

        timeout: how long to wait, in seconds; None waits forever. Raises EOFError when the other side has closed the
        socket and all messages have been returned.
        """
        messages = self._whole_messages()
        if not messages and not self._ended and self._selector.select(timeout):
            self._read()
            messages = self._whole_messages()
        if self._ended and not messages:
            raise EOFError
        return messages

    def _whole_messages(self) -> list[Received]:
        messages, start = [], 0
        while len(self._received) >= (body := start + _LENGTH.size):
            end = body + _LENGTH.unpack_from(self._received, start)[0]
            if len(self._received) < end:
                break
            messages.append(self._decoder.decode(self._received[body:end]))
            start = end
        del self._received[:start]
        return messages

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self.stream.recv(1 << 16):
                self._received += data
            self._ended = True

    def close(self) -> None:
        self._selector.close()
        self.stream.close()


class RemoteRuntime:
    """Starts the ranks of an engine directory, and implements the runtime protocol by talking to rank 0.

    threads and kv_tokens are those of LLM. draft_tokens: the most tokens of a draft; 0: none. The ranks run on this
    machine, or on the hosts that the environment names (job/hosts.py). `pids` has the process of each rank, and 0 for
    ranks on other machines. The constructor returns when all ranks have loaded the engine. It raises the error of a
    rank that fails to load it, UsageError if ranks cannot share memory or a host cannot run them, and RunError if they
    take longer than the backend's start_seconds.
    """

    def __init__(
        self,
        folder: Path,
        manifest: EngineManifest,
        *,
        threads: int | None = None,
        kv_tokens: int | None = None,
        draft_tokens: int = 0,
    ) -> None:
        self._hosts = Hosts.from_environment()
        if self._hosts is not None:
            self._hosts.check(manifest.ranks)
        check_shared_memory(manifest.ranks * BYTES_PER_RANK)
        self._closed = False
        backend = manifest.backend
        self._mpi_hint = backend.mpi_hint
        self._start_seconds, self._stop_seconds = backend.start_seconds, backend.stop_seconds
        self._limits = manifest.limits
        self.leftovers: set[Path] = set()
        self._tokens: list[Tokens] = []  # received, but not polled yet
        self._stats: Stats | None = None  # the answer to `stats`, once it has arrived
        self.pids: list[int] = []
        self._ready: Ready | None = None
        self._scratch = Scratch()
        self._folder = self._scratch.path
        self._log = self._folder / "ranks.log"
        try:
            if len(str(self._folder)) > _LONGEST_FOLDER:
                raise UsageError(f"TMPDIR ({self._folder.parent}) is too long: it must leave room for a socket's path")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(self._folder / "socket"))
                listener.listen(1)
                options = {"--threads": threads, "--kv-tokens": kv_tokens, "--draft-tokens": draft_tokens or None}
                given = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
                self._job = self._start(manifest.ranks, [str(folder.resolve()), str(self._folder / "socket"), *given])
                self._connection: Connection[FromRank0, ToRank0] = self._accept(listener)
            self._ready = self._wait_until_ready()
            pids, hosts = self._ready.pids, self._ready.hosts
            self.pids = [pid if host == hosts[0] else 0 for pid, host in zip(pids, hosts, strict=True)]
            self._first_exit = FirstExit(list(filter(None, self.pids)))
            self.leftovers = _shared_memory_of(self.pids[0])
            self._scratch.remove_later(map(str, self.leftovers))
        except BaseException:
            self.close()
            raise

    def _start(self, ranks: int, arguments: list[str]) -> subprocess.Popen[bytes]:
        worker = module_command("mpi4py", "-m", "trtllm_pt.runtime.worker")
        mpirun = find_mpirun(self._mpi_hint)
        command, environment = launch(mpirun, (ranks, [*worker, *arguments]), hosts=self._hosts)
        with self._log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # MPI and the compiled graph unpack files into TMPDIR, which `close` removes even if a rank cannot.
                env={**environment, "TMPDIR": str(self._folder)},
                cwd=None if self._hosts is None else "/",  # all hosts must have the folder in which mpirun starts
                start_new_session=True,  # so that Ctrl-C reaches the owner alone, which then stops the ranks
            )

    def _accept(self, listener: socket.socket) -> Connection[FromRank0, ToRank0]:
        listener.settimeout(0.05)
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                return Connection(listener.accept()[0], FromRank0)
            if self._job.poll() is not None or self._reported_on_hosts():
                raise self._why_the_job_ended()
        raise RunError(f"the ranks did not start within {self._start_seconds:.0f} s: {self._last_line()}")

    def _wait_until_ready(self) -> Ready:
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline:
            for message in self._receive(0.5):
                assert isinstance(message, Ready)
                return message
            if self._reported_on_hosts():
                raise self._why_the_job_ended()
        raise RunError(f"the engine did not load within {self._start_seconds:.0f} s")

    def submit(self, request: Request) -> None:
        """Queue a request whose tokens and sampling fields the caller has checked (Limits.check).

        Raises UsageError for a prompt that is empty or too long, and RunError if a rank died.
        """
        self._limits.check_prompt(len(request.token_ids))
        self._send(request)

    def cancel(self, request_id: int) -> None:
        """Cancel a request; its last message has finish reason `cancelled`. Unknown ids are ignored."""
        if not self._closed:  # otherwise no request is left
            self._send(Cancel(request_id))

    def poll(self, timeout: float) -> list[Tokens]:
        """Return new tokens, after at most `timeout` seconds. Raises RunError, naming the rank, if one died or hung."""
        if not self._tokens:
            self._take(self._receive(timeout))
        tokens, self._tokens = self._tokens, []
        return tokens

    def stats(self) -> Stats:
        """Return the engine's counters. Raises RunError if rank 0 does not answer within start_seconds."""
        self._stats = None
        self._send(AskStats())
        deadline = time.monotonic() + self._start_seconds
        while self._stats is None:
            if time.monotonic() > deadline:
                raise RunError(f"the engine did not answer within {self._start_seconds:.0f} s")
            self._take(self._receive(1.0))
        return self._stats

    def _take(self, messages: list[FromRank0]) -> None:
        for message in messages:
            match message:
                case Tokens():
                    self._tokens.append(message)
                case Stats():
                    self._stats = message

    def close(self) -> None:
        """Stop all ranks, by force if they do not exit in time, and remove the files that they left."""
        if self._closed:
            return
        self._closed = True
        if hasattr(self, "_connection"):
            self._connection.close()  # the ranks exit when the socket is closed
        if hasattr(self, "_job"):
            self._end_job()
        self._scratch.remove()  # with the files of ranks that could not remove them

    def _end_job(self) -> None:
        patience = self._stop_seconds if self.pids else 1.0
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._job.wait(patience)
        end(self._job, patience)

    def _send(self, message: ToRank0) -> None:
        if self._closed:
            raise UsageError(CLOSED)
        try:
            self._connection.send(message)
        except ConnectionError:
            raise self._why_the_job_ended() from None

    def _receive(self, timeout: float) -> list[FromRank0]:
        if self._closed:
            raise UsageError(CLOSED)
        try:
            return self._connection.receive(timeout)
        except (EOFError, ConnectionError):
            raise self._why_the_job_ended() from None

    def _why_the_job_ended(self) -> TrtllmPtError:
        """Return an error that says which rank stopped the job, and how, from the rank's report or mpirun's output."""
        log = self._log_of_the_end()
        if reported := read_last_words(log):
            if self._hosts is not None:
                self._stop_seconds = _LOST_SECONDS  # mpirun may wait for a host that is lost
            return reported
        if re.search(_MISSING_MPI, log):
            return UsageError(no_mpi(self._mpi_hint))
        if (ready := self._ready) is not None:
            hosts = ready.hosts if len(set(ready.hosts)) > 1 else None
            first = self._first_exit.pid if hosts is None else None  # only this machine's processes are watched
            if exited := first_exit(log, ready.pids, first, hosts):
                return RunError(f"{exited}; all ranks have exited")
        if self._hosts is not None and (problem := self._hosts.problem()) is not None:
            return RunError(f"mpirun has lost a host: {problem}")
        return RunError(f"the ranks have exited: {self._last_line()}")

    def _log_of_the_end(self) -> str:
        """Return the log when mpirun has exited, or when a rank has reported an error that mpirun may survive.

        An mpirun that has lost a machine may wait for it for a long time.
        """
        deadline = time.monotonic() + self._stop_seconds
        while True:
            ended = self._job.poll() is not None
            log = self._log.read_text(errors="replace")
            if ended or time.monotonic() > deadline or self._reported_on_hosts():
                return log
            time.sleep(_LOG_SECONDS)

    def _reported_on_hosts(self) -> bool:
        """Return whether a rank of several hosts has reported an error. The others may be waiting for it to start."""
        return self._hosts is not None and read_last_words(self._log.read_text(errors="replace")) is not None

    def _last_line(self) -> str:
        found = last_line(self._log.read_text(errors="replace"))
        return found or f"mpirun printed nothing (exit status {self._job.poll()})"


def _shared_memory_of(pid: int) -> set[Path]:
    """Return MPI's files in /dev/shm that a process has mapped. All ranks of its job share them."""
    with contextlib.suppress(OSError):
        return {Path(name) for name in re.findall(r"/dev/shm/mpich_shm_\w+", Path(f"/proc/{pid}/maps").read_text())}
    return set()
