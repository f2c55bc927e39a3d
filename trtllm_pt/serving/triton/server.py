"""Starts tritonserver, with all ranks, on a model repository; checks its health; and stops it.

This code runs in the process of `serve`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import random
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trtllm_pt.backends.registry import read_engine
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.files.scratch import Scratch
from trtllm_pt.job.hosts import Hosts
from trtllm_pt.job.mpirun import Launch, find_mpirun, launch
from trtllm_pt.job.process import end
from trtllm_pt.logs import fields
from trtllm_pt.serving.direct_http import open_directly
from trtllm_pt.serving.triton import tensors
from trtllm_pt.serving.triton.config_pbtxt import parameter, read_config
from trtllm_pt.serving.triton.find import Triton, find_triton
from trtllm_pt.serving.triton.health import fault
from trtllm_pt.serving.triton.models.base import MAX_BLS_REQUESTS

logger = logging.getLogger(__name__)
_START_SECONDS = 900.0  # large engines take minutes to load
DRAIN_SECONDS = 15  # how long running requests can continue after the server was asked to exit
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0  # the time that tritonserver itself needs to exit
_UNLOAD_SECONDS = 10.0  # how long models can take to unload when no request is left
_UNLOADING = b"All models are stopped, unloading models"  # tritonserver logs this when it unloads its models
# How many requests the engine has: the same metric of our Python model and of TensorRT-LLM's backend.
_ACTIVE = re.compile(r'^nv_trt_llm_request_metrics\{.*request_type="active".*\} (\S+)$', re.MULTILINE)
_ANSWER_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1
_SERVER_PORTS = range(10000, 32768)
# tritonserver 2.51 parses a request's JSON on a thread's stack: with a stack of 8 MB, a body of 16 MB crashes it.
_STACK_BYTES = 1 << 30
# A Python model that calls another model waits for the first response on one of Triton's threads. The same threads (32
# by default) pass on all responses, so with too few of them, requests that wait for a slot would delay running streams.
_MODEL_THREADS = MAX_BLS_REQUESTS + 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The host and the ports on which the server listens. `http_host`, if set, replaces `host` for HTTP."""

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    http_host: str | None = None

    @classmethod
    def free(cls) -> Address:
        """Return an address on the loopback interface with free ports."""
        http, grpc, metrics = free_ports(3)
        return cls(http=http, grpc=grpc, metrics=metrics)

    def behind_proxy(self) -> Address:
        """Return this address with HTTP on a free loopback port; a proxy then listens on the original HTTP port."""
        return replace(self, http=free_ports(1)[0], http_host="127.0.0.1")

    @property
    def reachable(self) -> str:
        """The host that a client on this machine connects to."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    @property
    def url(self) -> str:
        """The URL of Triton's HTTP port for a client on this machine."""
        return f"http://{self.http_host or self.reachable}:{self.http}"


def free_ports(count: int) -> list[int]:
    """Return the numbers of `count` free ports on the loopback interface.

    They lie below the ports that Linux gives to connections, which could take one before its server listens on it.
    """
    found: list[int] = []
    for port in random.sample(_SERVER_PORTS, len(_SERVER_PORTS)):
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RunError(f"fewer than {count} ports are free on 127.0.0.1")


class Server:
    """A running tritonserver. It is a context manager; leaving the block, or `close`, stops the server and all ranks.

    repository: the model repository. address: the ports. log: the file for Triton's log. drain_seconds: how long
    running requests can continue after the server was asked to exit. Raises UsageError if the folder is not a model
    repository, if a port is taken, or if tritonserver or MPI is missing.
    """

    def __init__(self, repository: Path, address: Address, log: Path, *, drain_seconds: int = DRAIN_SECONDS) -> None:
        check_port(address.http_host or address.host, address.http, "--http-port")
        check_port(address.host, address.grpc, "--grpc-port")
        check_port(address.host, address.metrics, "--metrics-port")
        self.address, self.log, self._drain_seconds = address, log, drain_seconds
        self._in_python = _runs_in_python(repository)
        self._ranks, self._mpi_hint = _servers(repository)
        self._scratch = Scratch("serve-")
        prefix = self._scratch.path.name  # of the server's names in /dev/shm
        self._scratch.remove_later([f"/dev/shm/{prefix}*"])
        try:
            triton = find_triton(self._scratch.path)
            command, environment = server_command(
                triton, repository.resolve(), address, self._ranks, prefix, self._mpi_hint, drain_seconds
            )
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    # `close` removes what the server leaves in its TMPDIR.
                    env={**environment, "TMPDIR": str(self._scratch.path)},
                    cwd=self._scratch.path,  # because Triton's Python models import from the working directory first
                    start_new_session=True,  # so that Ctrl-C reaches this process alone, which then stops the server
                    preexec_fn=_prepare,
                )
        except BaseException:
            self._scratch.remove()
            raise
        started = fields(processes=self._ranks, first=self._process.pid, repository=repository, triton_log=log)
        logger.info("tritonserver started", extra=started)

    def wait_until_ready(self, report: Callable[[float], None] = lambda seconds: None) -> None:
        """Wait until every model is ready. `report` is called repeatedly with the seconds since the start.

        Raises RunError, with the server's reason, if the server exits instead, or after _START_SECONDS.
        """
        began = time.monotonic()
        while not self.ready():
            if self._process.poll() is not None:
                raise RunError(self.reason())
            seconds = time.monotonic() - began
            if seconds > _START_SECONDS:
                raise RunError(f"the server was not ready after {seconds:.0f} s; see its log, {self.log}")
            report(seconds)
            time.sleep(_POLL_SECONDS)

    def ready(self) -> bool:
        """Return whether Triton reports that the server and all of its models are ready."""
        try:
            with open_directly(f"{self.address.url}/v2/health/ready", 5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait(self, seconds: float) -> int | None:
        """Wait for the server to exit. Returns its exit status, or None if it still runs after `seconds`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def fault(self) -> str | None:
        """Return a message about a model that does not work, or None if all models work."""
        return fault(self.address.url, engine_in_python=self._in_python)

    def reason(self) -> str:
        """Return why the server exited: the first error in its log."""
        log = self.log.read_text(errors="replace")
        if failed := re.search(r"failed to load '(\w+)' version 1: \w+: (?:\w*Error: )?(.*?)(?:\\n|\"|$)", log):
            return f"{failed[1]}: {failed[2]}"
        if other := re.search(r"^error: (.*)", log, re.MULTILINE):
            return f"tritonserver: {other[1]}"
        return f"tritonserver exited with status {self._process.poll()}; see its log, {self.log}"

    def close(self, seconds: float | None = None) -> int:
        """Stop the server, after giving running requests time to finish. Returns its exit status.

        seconds: how long they can continue; None: as long as the server was made for, which it never exceeds.

        The status is -9 if the server had to be killed. Triton 2.51 never unloads a model that had a gRPC request which
        the client cancelled just when it finished.
        """
        was_running = self._process.poll() is None
        if was_running:
            self._process.send_signal(signal.SIGTERM)
            self._wait_for_requests_and_models(self._drain_seconds if seconds is None else seconds)
        if self._process.poll() is None:
            end(self._process, _UNLOAD_SECONDS, polite=())
        self._scratch.remove()
        status = self._process.wait()
        if was_running:
            logger.info("tritonserver exited", extra=fields(status=status))
        return status

    def _wait_for_requests_and_models(self, seconds: float) -> None:
        """Wait until the server has exited or has been without a request for _UNLOAD_SECONDS.

        seconds: how long requests can continue. Triton does not count a streamed request as one in flight, and
        so unloads its models at once, which wait for it.
        """
        deadline = time.monotonic() + seconds + _GRACE_SECONDS
        idle_since: float | None = None
        while (now := time.monotonic()) < deadline and self.wait(_POLL_SECONDS) is None:
            if self._ranks > 1 or _UNLOADING not in self.log.read_bytes():
                continue
            if idle_since is None or self._has_requests():
                idle_since = now
            elif now - idle_since > _UNLOAD_SECONDS:
                return

    def _has_requests(self) -> bool:
        """Return whether the engine has requests, by its metrics, which Triton serves while it ends."""
        url = f"http://{self.address.reachable}:{self.address.metrics}/metrics"
        with contextlib.suppress(urllib.error.URLError, OSError), open_directly(url, _ANSWER_SECONDS) as answer:
            found = _ACTIVE.search(answer.read().decode())
            return found is not None and float(found[1]) > 0
        return False

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_port(host: str, port: int, option: str) -> None:
    """Raise UsageError, naming the option, if a port cannot be used. Triton itself would share its HTTP port."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise UsageError(f"{option} ({port}) {why}; choose another") from None


def is_repository(folder: Path) -> bool:
    """Return whether a folder is a model repository that contains the model `tensorrt_llm`."""
    return (folder / tensors.ENGINE / "config.pbtxt").exists()


def _runs_in_python(repository: Path) -> bool:
    """Return whether our Python model runs the engine. Otherwise a Triton backend in C++ does."""
    return bool(_engine_config(repository).backend == "python")


def _engine_config(repository: Path) -> Any:
    if not is_repository(repository):
        raise UsageError(f"{repository} is not a model repository: it has no {tensors.ENGINE}/config.pbtxt")
    return read_config(repository / tensors.ENGINE / "config.pbtxt")


def _servers(repository: Path) -> tuple[int, str]:
    """Return the number of servers to start, and the MPI hint for several of them.

    If a Triton backend in C++ runs the engine, every rank is a server. Our Python model starts the ranks itself.
    """
    if _runs_in_python(repository):
        return 1, ""
    manifest = read_engine(engine_folder(repository))
    return manifest.ranks, manifest.backend.mpi_hint


def engine_folder(repository: Path) -> Path:
    """Return the engine directory that a repository serves. Raises UsageError if the repository names none."""
    path = parameter(_engine_config(repository), "gpt_model_path")
    if path is None:
        raise UsageError(f"{repository}: {tensors.ENGINE}/config.pbtxt has no gpt_model_path")
    return (repository / tensors.ENGINE / path).resolve()


def server_command(
    triton: Triton,
    repository: Path,
    address: Address,
    ranks: int,
    prefix: str,
    mpi_hint: str = "",
    drain_seconds: int = DRAIN_SECONDS,
) -> Launch:
    """Return the command line and the environment that start the server, or one server per rank under mpirun.

    Several servers run in TensorRT-LLM's leader mode: only rank 0 has ports and loads all models; the other ranks load
    the engine alone. prefix: the prefix of the servers' names in /dev/shm. mpi_hint: what to install if mpirun is
    missing. drain_seconds: as for Server.
    """
    common = [
        str(triton.binary),
        *triton.options,
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        f"--backend-config=python,thread-pool-size={_MODEL_THREADS}",
        f"--exit-timeout-secs={drain_seconds}",
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
    mpirun, hosts = find_mpirun(mpi_hint), Hosts.from_environment()
    if hosts is not None:
        hosts.check(ranks)
    return launch(mpirun, *programs, hosts=hosts, environment=triton.environment)


def _prepare() -> None:
    """Prepare the new process: it gets SIGTERM when this process exits, and its threads get large stacks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = _STACK_BYTES if most == resource.RLIM_INFINITY else min(_STACK_BYTES, most)
    resource.setrlimit(resource.RLIMIT_STACK, (wanted, most))
