"""A running engine in its own processes: all ranks under mpirun, and a unix socket to rank 0.

The one process form for Python and the command line: whoever holds this object outlives a rank that dies, and
the ranks never outlive it.
"""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.errors import RunError, TrtllmPtError, UsageError
from trtllm_pt.job.first_exit import FirstExit, first_exit
from trtllm_pt.job.last_words import read_last_words
from trtllm_pt.job.mpirun import find_mpirun, launch, no_mpi
from trtllm_pt.job.process import end, last_line
from trtllm_pt.requests.messages import CLOSED, Request, Stats, Tokens

_MISSING_MPI = "no libmpi|cannot load MPI|No module named '?mpi4py"  # what a rank prints that finds none
_LONGEST_FOLDER = 95  # characters: a socket's path has at most 107


class Connection:
    """JSON messages, a line each, over a stream socket."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.stream.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(stream, selectors.EVENT_READ)
        self._received = b""
        self._ended = False

    def send(self, message: dict[str, Any]) -> None:
        """Raises ConnectionError where the other side is gone."""
        data = memoryview(json.dumps(message).encode() + b"\n")
        self._selector.modify(self.stream, selectors.EVENT_READ | selectors.EVENT_WRITE)
        try:
            while data:
                self._selector.select()
                self._read()  # the other side may be waiting for us to read, with its own message half sent
                with contextlib.suppress(BlockingIOError):
                    data = data[self.stream.send(data) :]
        finally:
            self._selector.modify(self.stream, selectors.EVENT_READ)

    def receive(self, timeout: float | None) -> list[dict[str, Any]]:
        """What has arrived; waits up to `timeout` seconds for it (None: for ever). Raises EOFError at the end."""
        if b"\n" not in self._received and not self._ended and self._selector.select(timeout):
            self._read()
        *lines, self._received = self._received.split(b"\n")
        if self._ended and not lines:
            raise EOFError
        return [json.loads(line) for line in lines]

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := self.stream.recv(1 << 16):
                self._received += data
            self._ended = True

    def close(self) -> None:
        self._selector.close()
        self.stream.close()


class RemoteRuntime:
    """Starts an engine directory's ranks and speaks the runtime protocol with rank 0.

    Raises UsageError or RunError, whichever stopped the workers from starting.
    """

    def __init__(
        self, folder: Path, manifest: EngineManifest, *, threads: int | None = None, kv_tokens: int | None = None
    ) -> None:
        self._closed = False
        backend = manifest.backend
        self._mpi_hint = backend.mpi_hint
        self._start_seconds, self._stop_seconds = backend.start_seconds, backend.stop_seconds
        self._limits = manifest.limits
        self.leftovers: set[Path] = set()
        self._tokens: list[Tokens] = []  # received, not polled yet
        self._stats: Stats | None = None  # the answer, once it is there
        self.pids: list[int] = []
        self._folder = Path(tempfile.mkdtemp(prefix="trtllm_pt-"))
        self._log = self._folder / "ranks.log"
        try:
            if len(str(self._folder)) > _LONGEST_FOLDER:
                raise UsageError(f"TMPDIR is too long for a socket in it: {self._folder}")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(self._folder / "socket"))
                listener.listen(1)
                options = {"--threads": threads, "--kv-tokens": kv_tokens}
                given = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
                self._job = self._start(manifest.ranks, [str(folder), str(self._folder / "socket"), *given])
                self._connection = self._accept(listener)
            self.pids = self._wait_until_ready()
            self._first_exit = FirstExit(self.pids)
            self.leftovers = _shared_memory_of(self.pids[0])
        except BaseException:
            self.close()
            raise

    def _start(self, ranks: int, arguments: list[str]) -> subprocess.Popen[bytes]:
        worker = [sys.executable, "-m", "mpi4py", "-m", "trtllm_pt.runtime.worker"]
        command, environment = launch(find_mpirun(self._mpi_hint), (ranks, [*worker, *arguments]))
        with self._log.open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # MPI and the compiled graph unpack files into TMPDIR, which `close` removes even if a rank cannot.
                env={**environment, "TMPDIR": str(self._folder)},
                start_new_session=True,  # Ctrl-C is for the owner, who then closes
            )

    def _accept(self, listener: socket.socket) -> Connection:
        listener.settimeout(0.05)
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                return Connection(listener.accept()[0])
            if self._job.poll() is not None:
                raise self._why_the_job_ended()
        raise RunError(f"the ranks did not start within {self._start_seconds:.0f} s: {self._last_line()}")

    def _wait_until_ready(self) -> list[int]:
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline:
            for message in self._receive(0.5):
                pids: list[int] = message["ready"]
                return pids
        raise RunError(f"the engine did not load within {self._start_seconds:.0f} s")

    def submit(self, request: Request) -> None:
        self._limits.check(request)
        self._send({"submit": request.to_json()})

    def cancel(self, request_id: int) -> None:
        if not self._closed:  # else all have ended
            self._send({"cancel": request_id})

    def poll(self, timeout: float) -> list[Tokens]:
        """Raises RunError where a rank died or hung, naming it."""
        if not self._tokens:
            self._take(self._receive(timeout))
        tokens, self._tokens = self._tokens, []
        return tokens

    def stats(self) -> Stats:
        self._stats = None
        self._send({"stats": True})
        deadline = time.monotonic() + self._start_seconds
        while self._stats is None:
            if time.monotonic() > deadline:
                raise RunError(f"the engine did not answer within {self._start_seconds:.0f} s")
            self._take(self._receive(1.0))
        return self._stats

    def _take(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            match message:
                case {"tokens": data}:
                    self._tokens.append(Tokens.from_json(data))
                case {"stats": data}:
                    self._stats = Stats(**data)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if hasattr(self, "_connection"):
            self._connection.close()  # the workers end at the end of the stream
        if hasattr(self, "_job"):
            self._end_job()
        shutil.rmtree(self._folder, ignore_errors=True)
        for path in self.leftovers:  # of ranks that could not clean up
            path.unlink(missing_ok=True)

    def _end_job(self) -> None:
        patience = self._stop_seconds if self.pids else 1.0
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._job.wait(patience)
        end(self._job, patience)

    def _send(self, message: dict[str, Any]) -> None:
        if self._closed:
            raise UsageError(CLOSED)
        try:
            self._connection.send(message)
        except ConnectionError:
            raise self._why_the_job_ended() from None

    def _receive(self, timeout: float) -> list[dict[str, Any]]:
        if self._closed:
            raise UsageError(CLOSED)
        try:
            return self._connection.receive(timeout)
        except (EOFError, ConnectionError):
            raise self._why_the_job_ended() from None

    def _why_the_job_ended(self) -> TrtllmPtError:
        """Which rank ended the job, and how, by what it reported itself or by what mpirun printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._job.wait(self._stop_seconds)
        log = self._log.read_text(errors="replace")
        if reported := read_last_words(log):
            return reported
        if re.search(_MISSING_MPI, log):
            return UsageError(no_mpi(self._mpi_hint))
        if exited := first_exit(log, self.pids, self._first_exit.pid if self.pids else None):
            return RunError(f"{exited}; all ranks have ended")
        return RunError(f"the ranks have ended: {self._last_line()}")

    def _last_line(self) -> str:
        found = last_line(self._log.read_text(errors="replace"))
        return found or f"mpirun has printed nothing (status {self._job.poll()})"


def _shared_memory_of(pid: int) -> set[Path]:
    """MPI's files in /dev/shm that a process has mapped: those of its whole job."""
    with contextlib.suppress(OSError):
        return {Path(name) for name in re.findall(r"/dev/shm/mpich_shm_\w+", Path(f"/proc/{pid}/maps").read_text())}
    return set()
