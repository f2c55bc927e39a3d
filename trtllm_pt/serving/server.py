"""A tritonserver over a model repository: started with all its ranks, watched, and ended."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
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
from dataclasses import dataclass
from pathlib import Path

from trtllm_pt.engine.manifest import EngineManifest
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.runtime.launch import find_mpirun
from trtllm_pt.serving.triton import Triton, find_triton

_START_SECONDS = 900.0  # large engines take minutes to load
_EXIT_SECONDS = 15  # for requests that are running when the server is told to end
_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0  # what tritonserver itself takes to end
_ANSWER_SECONDS = 10.0  # in which a model must answer a request that asks for nothing
_PR_SET_PDEATHSIG = 1
_STACK_BYTES = 1 << 30  # tritonserver 2.51 puts a request's JSON on a thread's stack: with 8 MB, 16 MB of it crash it
_SHARED_MEMORY = Path("/dev/shm")
_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # containers are


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the server listens."""

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @classmethod
    def free(cls) -> Address:
        """On loopback and ports that nobody uses now."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            http, grpc, metrics = (one.getsockname()[1] for one in sockets)
        return cls(http=http, grpc=grpc, metrics=metrics)

    @property
    def reachable(self) -> str:
        """The host for a client on this machine."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    @property
    def url(self) -> str:
        return f"http://{self.reachable}:{self.http}"


class Server:
    """A server that runs. A context manager: `close` ends it and all that it started.

    Its words go to the file `log`. Raises UsageError for a folder that is no model repository, or where something that
    it needs is missing.
    """

    def __init__(self, repository: Path, address: Address, log: Path) -> None:
        _check_ports(address)
        self.address, self.log = address, log
        self._embedded = _is_embedded(repository)
        ranks = _servers(repository)
        self._scratch = Path(tempfile.mkdtemp(prefix="trtllm_pt-serve-"))
        self._prefix = self._scratch.name  # of what it puts into shared memory
        try:
            triton = find_triton(self._scratch)
            command = server_command(triton, repository.resolve(), address, ranks, self._prefix)
            with log.open("wb") as words:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=words,
                    stderr=subprocess.STDOUT,
                    # What is left in its TMPDIR goes with us.
                    env={**triton.environment, **_AS_ROOT, "TMPDIR": str(self._scratch)},
                    start_new_session=True,  # Ctrl-C is for us, who then end it
                    preexec_fn=_prepare,
                )
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise

    def wait_until_ready(self, tell: Callable[[float], None] = lambda seconds: None) -> None:
        """Returns when every model is ready; `tell` hears now and then how long it has taken.

        Raises RunError with the server's own reason where it ends instead.
        """
        began = time.monotonic()
        while not self.ready():
            if self._process.poll() is not None:
                raise RunError(self.reason())
            seconds = time.monotonic() - began
            if seconds > _START_SECONDS:
                raise RunError(f"the server was not ready after {seconds:.0f} s; its words are in {self.log}")
            tell(seconds)
            time.sleep(_POLL_SECONDS)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address.url}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait(self, seconds: float) -> int | None:
        """The server's exit status; None: it goes on after that time."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def fault(self) -> str | None:
        """What is wrong with the embedded engine; None: nothing. Triton calls a model ready even when its process is
        dead, so this asks the model to end a request that nobody made."""
        body = {"id": "watchdog", "stop": True, "input_ids": [0], "input_lengths": 1, "request_output_len": 1}
        request = urllib.request.Request(
            f"{self.address.url}/v2/models/tensorrt_llm/generate_stream", json.dumps(body).encode()
        )
        if not self._embedded:  # under mpirun all of a TensorRT engine's servers end with the first
            return None
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
                said = answer.read().decode()
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
        except (urllib.error.URLError, OSError) as error:
            return f"tensorrt_llm does not answer: {error}"
        found = re.search(r'"error":"(.*)"}', said)
        return found[1] if found else None

    def reason(self) -> str:
        """Why the server ended: the first error in its log, in its own words."""
        words = self.log.read_text(errors="replace")
        if failed := re.search(r"failed to load '(\w+)' version 1: \w+: (?:\w*Error: )?(.*?)(?:\\n|\"|$)", words):
            return f"{failed[1]}: {failed[2]}"
        if other := re.search(r"^error: (.*)", words, re.MULTILINE):
            return f"tritonserver: {other[1]}"
        return f"tritonserver ended with status {self._process.poll()}; its words are in {self.log}"

    def close(self) -> int:
        """End it now: requests that run have some seconds to finish. Returns its exit status."""
        for end, seconds in ((signal.SIGTERM, _EXIT_SECONDS + _GRACE_SECONDS), (signal.SIGKILL, _GRACE_SECONDS)):
            if self._process.poll() is None:
                self._process.send_signal(end)
                self.wait(seconds)
        shutil.rmtree(self._scratch, ignore_errors=True)
        for left in _SHARED_MEMORY.glob(f"{self._prefix}*"):
            left.unlink(missing_ok=True)
        return self._process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_ports(address: Address) -> None:
    """Raises UsageError, naming the option, where somebody listens already: Triton itself shares its HTTP port."""
    for name, port in (("http", address.http), ("grpc", address.grpc), ("metrics", address.metrics)):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind((address.host, port))
            except OSError as error:
                why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
                raise UsageError(f"--{name}-port ({port}) {why}; choose another") from None


def is_repository(folder: Path) -> bool:
    return (folder / "tensorrt_llm" / "config.pbtxt").exists()


def _is_embedded(repository: Path) -> bool:
    if not is_repository(repository):
        raise UsageError(f"{repository} is no model repository: it has no tensorrt_llm/config.pbtxt")
    written = (repository / "tensorrt_llm" / "config.pbtxt").read_text()
    return bool(re.search(r'^backend: "python"', written, re.MULTILINE))


def _servers(repository: Path) -> int:
    """One for each rank of TensorRT engines; the embedded engine starts its ranks by itself."""
    if _is_embedded(repository):
        return 1
    return EngineManifest.from_dir(engine_folder(repository)).ranks


def engine_folder(repository: Path) -> Path:
    """The engines that a repository serves. Raises UsageError where it does not say."""
    written = (repository / "tensorrt_llm" / "config.pbtxt").read_text()
    found = re.search(r'"gpt_model_path".*?string_value: "(.*?)"', written, re.DOTALL)
    if found is None:
        raise UsageError(f"{repository}: tensorrt_llm/config.pbtxt has no gpt_model_path")
    return (repository / "tensorrt_llm" / found[1]).resolve()


def server_command(triton: Triton, repository: Path, address: Address, ranks: int, prefix: str) -> list[str]:
    """The command line. TensorRT engines: TensorRT-LLM's leader mode, where rank 0 alone has ports and all models."""
    common = [
        str(triton.binary),
        *triton.options,
        f"--model-repository={repository}",
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={_EXIT_SECONDS}",
    ]
    leader = [
        f"--http-address={address.host}",
        f"--http-port={address.http}",
        f"--grpc-address={address.host}",
        f"--grpc-port={address.grpc}",
        f"--metrics-address={address.host}",
        f"--metrics-port={address.metrics}",
    ]
    follower = ["--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"]
    follower += ["--model-control-mode=explicit", "--load-model=tensorrt_llm"]
    shares = [
        [*common, *(follower if rank else leader), f"--backend-config=python,shm-region-prefix-name={prefix}-{rank}-"]
        for rank in range(ranks)
    ]
    if ranks == 1:
        return shares[0]
    command = [find_mpirun("tensorrt_llm")]
    for rank, share in enumerate(shares):
        command += [*([":"] if rank else []), "-n", "1", *share]
    return command


def _prepare() -> None:
    """In the new process: it ends when this one is gone, however that came, and its threads get large stacks."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = _STACK_BYTES if most == resource.RLIM_INFINITY else min(_STACK_BYTES, most)
    resource.setrlimit(resource.RLIMIT_STACK, (wanted, most))
