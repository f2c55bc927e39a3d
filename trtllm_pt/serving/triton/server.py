"""Starts tritonserver over a model repository with all its ranks, watches it, and ends it.

Used in the process of `serve`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtllm_pt.backends.registry import read_engine
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.job.mpirun import Launch, find_mpirun, launch
from trtllm_pt.job.process import end
from trtllm_pt.logs import fields
from trtllm_pt.serving.triton import tensors
from trtllm_pt.serving.triton.config_pbtxt import parameter, read_config
from trtllm_pt.serving.triton.find import Triton, find_triton
from trtllm_pt.serving.triton.health import fault
from trtllm_pt.serving.triton.models.base import MAX_BLS_REQUESTS

logger = logging.getLogger(__name__)
_START_SECONDS = 900.0  # large engines take minutes to load
_EXIT_SECONDS = 15  # for requests that are running when the server is told to end
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0  # what tritonserver itself takes to end
_UNLOAD_SECONDS = 10.0  # for models to unload when no request is left
_UNLOADING = b"All models are stopped, unloading models"  # what tritonserver says then
_PR_SET_PDEATHSIG = 1
_STACK_BYTES = 1 << 30  # tritonserver 2.51 puts a request's JSON on a thread's stack: with 8 MB, 16 MB of it crash it
_SHARED_MEMORY = Path("/dev/shm")
# A Python model that asks another one waits for its first answer on a thread of Triton's, of which the same few (32 by
# default) pass on all answers: with too few, requests that wait for a slot would hold up the streams of those that run.
_MODEL_THREADS = MAX_BLS_REQUESTS + 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The ports on which the server listens. `http_host` is the host for HTTP if it is not `host`."""

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    http_host: str | None = None

    @classmethod
    def free(cls) -> Address:
        """Return an address on loopback with free ports."""
        http, grpc, metrics = free_ports(3)
        return cls(http=http, grpc=grpc, metrics=metrics)

    def behind_proxy(self) -> Address:
        """Return this address with HTTP on a free port of loopback, for a proxy on the real one."""
        return replace(self, http=free_ports(1)[0], http_host="127.0.0.1")

    @property
    def reachable(self) -> str:
        """The host for a client on this machine."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    @property
    def url(self) -> str:
        return f"http://{self.http_host or self.reachable}:{self.http}"


def free_ports(count: int) -> list[int]:
    """Return free ports of loopback."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Server:
    """A running server. It is a context manager, and `close` ends the server and all that it started.

    Triton's log goes to the file `log`. Raises UsageError for a folder that is not a model repository, and where
    something that the server needs is missing.
    """

    def __init__(self, repository: Path, address: Address, log: Path) -> None:
        check_port(address.http_host or address.host, address.http, "--http-port")
        check_port(address.host, address.grpc, "--grpc-port")
        check_port(address.host, address.metrics, "--metrics-port")
        self.address, self.log = address, log
        self._in_python = _runs_in_python(repository)
        self._ranks, self._mpi_hint = _servers(repository)
        self._scratch = Path(tempfile.mkdtemp(prefix="trtllm_pt-serve-"))
        self._prefix = self._scratch.name  # of what it puts into shared memory
        try:
            triton = find_triton(self._scratch)
            command, environment = server_command(
                triton, repository.resolve(), address, self._ranks, self._prefix, self._mpi_hint
            )
            with log.open("wb") as words:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=words,
                    stderr=subprocess.STDOUT,
                    # What is left in its TMPDIR goes with us.
                    env={**environment, "TMPDIR": str(self._scratch)},
                    start_new_session=True,  # Ctrl-C is for us, who then end it
                    preexec_fn=_prepare,
                )
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        started = fields(processes=self._ranks, first=self._process.pid, repository=repository, triton_log=log)
        logger.info("tritonserver started", extra=started)

    def wait_until_ready(self, report: Callable[[float], None] = lambda seconds: None) -> None:
        """Return when every model is ready. `report` is called now and then with the seconds since the start.

        Raises RunError with the server's own reason if it exits instead.
        """
        began = time.monotonic()
        while not self.ready():
            if self._process.poll() is not None:
                raise RunError(self.reason())
            seconds = time.monotonic() - began
            if seconds > _START_SECONDS:
                raise RunError(f"the server was not ready after {seconds:.0f} s; see {self.log}")
            report(seconds)
            time.sleep(_POLL_SECONDS)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address.url}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait(self, seconds: float) -> int | None:
        """Wait for the server to exit. Returns its exit status, or None if it still runs after that time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def fault(self) -> str | None:
        """Return what is wrong with a model, or None."""
        return fault(self.address.url, engine_in_python=self._in_python)

    def reason(self) -> str:
        """Return why the server exited: the first error in its log."""
        words = self.log.read_text(errors="replace")
        if failed := re.search(r"failed to load '(\w+)' version 1: \w+: (?:\w*Error: )?(.*?)(?:\\n|\"|$)", words):
            return f"{failed[1]}: {failed[2]}"
        if other := re.search(r"^error: (.*)", words, re.MULTILINE):
            return f"tritonserver: {other[1]}"
        return f"tritonserver exited with status {self._process.poll()}; see {self.log}"

    def close(self) -> int:
        """End it now: requests that run have some seconds to finish. Returns its exit status, -9 where it was killed:
        Triton 2.51 keeps a gRPC request for ever that its client cancelled just as it ended, and so never unloads its
        model."""
        was_running = self._process.poll() is None
        if was_running:
            self._process.send_signal(signal.SIGTERM)
            self._wait_for_requests_and_models()
        if self._process.poll() is None:
            end(self._process, _UNLOAD_SECONDS, polite=())
        shutil.rmtree(self._scratch, ignore_errors=True)
        for left in _SHARED_MEMORY.glob(f"{self._prefix}*"):
            left.unlink(missing_ok=True)
        status = self._process.wait()
        if was_running:
            logger.info("tritonserver exited", extra=fields(status=status))
        return status

    def _wait_for_requests_and_models(self) -> None:
        end = time.monotonic() + _EXIT_SECONDS + _GRACE_SECONDS
        while time.monotonic() < end and self.wait(_POLL_SECONDS) is None:
            if self._ranks == 1 and _UNLOADING in self.log.read_bytes():
                self.wait(_UNLOAD_SECONDS)
                return

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_port(host: str, port: int, option: str) -> None:
    """Raises UsageError, naming the option, for a port in use. Triton itself would share its HTTP port."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise UsageError(f"{option} ({port}) {why}; choose another") from None


def is_repository(folder: Path) -> bool:
    return (folder / tensors.ENGINE / "config.pbtxt").exists()


def _runs_in_python(repository: Path) -> bool:
    """Whether our Python model runs the engine, and not a backend of Triton's own."""
    return bool(_engine_config(repository).backend == "python")


def _engine_config(repository: Path) -> Any:
    if not is_repository(repository):
        raise UsageError(f"{repository} is not a model repository: it has no {tensors.ENGINE}/config.pbtxt")
    return read_config(repository / tensors.ENGINE / "config.pbtxt")


def _servers(repository: Path) -> tuple[int, str]:
    """How many servers run together, and what more than one needs: one server for each rank where a backend of Triton's
    runs the engine. Our Python model starts the ranks itself."""
    if _runs_in_python(repository):
        return 1, ""
    manifest = read_engine(engine_folder(repository))
    return manifest.ranks, manifest.backend.mpi_hint


def engine_folder(repository: Path) -> Path:
    """Return the engine directory that a repository serves. Raises UsageError where the repository names none."""
    path = parameter(_engine_config(repository), "gpt_model_path")
    if path is None:
        raise UsageError(f"{repository}: {tensors.ENGINE}/config.pbtxt has no gpt_model_path")
    return (repository / tensors.ENGINE / path).resolve()


def server_command(
    triton: Triton, repository: Path, address: Address, ranks: int, prefix: str, mpi_hint: str = ""
) -> Launch:
    """The command line and its environment. A backend of Triton's own has a server per rank, in TensorRT-LLM's leader
    mode: rank 0 alone has ports and all models."""
    common = [
        str(triton.binary),
        *triton.options,
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        f"--backend-config=python,thread-pool-size={_MODEL_THREADS}",
        f"--exit-timeout-secs={_EXIT_SECONDS}",
    ]
    leader = [
        f"--http-address={address.http_host or address.host}",
        f"--http-port={address.http}",
        f"--grpc-address={address.host}",
        f"--grpc-port={address.grpc}",
        f"--metrics-address={address.host}",
        f"--metrics-port={address.metrics}",
    ]
    follower = ["--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"]
    follower += ["--model-control-mode=explicit", f"--load-model={tensors.ENGINE}"]
    shares = [
        [*common, *(follower if rank else leader), f"--backend-config=python,shm-region-prefix-name={prefix}-{rank}-"]
        for rank in range(ranks)
    ]
    if ranks == 1:
        return Launch(shares[0], dict(triton.environment))
    programs = ((1, share) for share in shares)
    return launch(find_mpirun(mpi_hint), *programs, environment=triton.environment)


def _prepare() -> None:
    """In the new process: it ends when this one is gone, however that came, and its threads get large stacks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = _STACK_BYTES if most == resource.RLIM_INFINITY else min(_STACK_BYTES, most)
    resource.setrlimit(resource.RLIMIT_STACK, (wanted, most))
