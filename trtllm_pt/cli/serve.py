"""`trtllm-pt serve`: serves engines through Triton, behind an HTTP proxy and with an OpenAI port."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from trtllm_pt.cli.hosts_options import hosts_options
from trtllm_pt.cli.options import speculative_option
from trtllm_pt.errors import INSTALL_SERVE, RunError, UsageError

if TYPE_CHECKING:
    from trtllm_pt.serving.http_thread import Port
    from trtllm_pt.serving.openai.app import OpenAIServer
    from trtllm_pt.serving.triton.server import Address, Server

_PORT = click.IntRange(1, 65535)
_CHECK_SECONDS = 2.0  # between two health checks of the models
_POLL_SECONDS = 0.1
_REQUEST = '{"text_input": "def main(", "max_tokens": 32, "stream": true}'


def _checked_origins(context: click.Context, option: click.Parameter, origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}"):
            raise click.BadParameter(
                f"{origin!r} must be * or a scheme and a host, such as https://example.com", context, option
            )
    return origins


@click.command("serve")
@click.argument("folder", metavar="ENGINES|REPO", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 is all interfaces.")
@click.option("--http-port", type=_PORT, default=8000, show_default=True, help="Port for HTTP.")
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True, help="Port for gRPC.")
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True, help="Port for Prometheus metrics.")
@click.option(
    "--openai-port",
    type=click.IntRange(0, 65535),
    default=9000,
    show_default=True,
    help="Port for OpenAI's endpoints and the web page; 0 disables them.",
)
@click.option(
    "--served-model-name",
    metavar="NAME",
    help="The model's name at OpenAI's endpoints.  [default: the name of the folder]",
)
@click.option(
    "--allowed-origin",
    "allowed_origins",
    metavar="ORIGIN",
    multiple=True,
    callback=_checked_origins,
    help="Let web pages of this origin, such as https://example.com, use OpenAI's endpoints; * is all. Repeatable.",
)
@speculative_option
@click.option(
    "--api-key-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Key that OpenAI's endpoints ask for; Triton's ports then listen on 127.0.0.1 only.  "
    "[default: the environment's TRTLLM_PT_API_KEY, or no key]",
)
@click.option("--log", type=click.Path(path_type=Path), help="File for Triton's log.  [default: a temporary file]")
@click.option(
    "--drain-seconds",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="Time that running requests have to finish when the server is asked to exit.",
)
@hosts_options
def command(
    folder: Path,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    openai_port: int,
    served_model_name: str | None,
    allowed_origins: tuple[str, ...],
    speculative: str | None,
    api_key_file: Path | None,
    log: Path | None,
    drain_seconds: int,
) -> None:
    """Serve engines through NVIDIA Triton, and start all their ranks.

    The argument is an engine directory, for which a temporary model repository is written, or a model repository.
    Ctrl-C or SIGTERM stops the server and all ranks. New requests are then refused, and those that run may finish.

    \b
    Examples:
      trtllm-pt serve engines/demo
      trtllm-pt serve triton_model_repo --host 0.0.0.0 --log server.log
      trtllm-pt serve engines/demo --hosts node1:1,node2:1 --interface eth0
    """
    from trtllm_pt.serving.triton.server import Address, Server, check_port, engine_folder

    if not openai_port and (served_model_name is not None or allowed_origins or api_key_file is not None):
        raise UsageError(
            "--served-model-name, --allowed-origin and --api-key-file need OpenAI's endpoints: --openai-port is 0"
        )
    api_key = _api_key(api_key_file)
    # Triton does not ask for the key, so the network must not reach its ports.
    address = Address(
        host=host if api_key is None else "127.0.0.1", http=http_port, grpc=grpc_port, metrics=metrics_port
    )
    inside = address.behind_proxy()
    check_port(address.host, http_port, "--http-port")
    with tempfile.TemporaryDirectory(prefix="trtllm_pt-") as scratch, _signals():
        repository = _repository(folder, Path(scratch), speculative)
        # Before the models load, because it may raise UsageError.
        engines = engine_folder(repository)
        endpoints = [_http_proxy(engines, inside, address)]
        if openai_port:
            name = folder.resolve().name if served_model_name is None else served_model_name
            check_port(host, openai_port, "--openai-port")
            openai = _openai_server(engines, name, address, allowed_origins, api_key)
            endpoints.append(openai.listening(host, openai_port))
        log = log or Path(scratch) / "server.log"
        with contextlib.suppress(_Ended), Server(repository, inside, log, drain_seconds=drain_seconds) as server:
            _wait_until_ready(server, folder)
            with contextlib.ExitStack() as listening:
                ports = [listening.enter_context(endpoint) for endpoint in endpoints]
                _announce(address, replace(address, host=host), openai_port)
                left = float(drain_seconds)
                try:
                    _watch(server)
                except _Ended:
                    left = _drain(ports, left)
                    raise
                finally:
                    server.close(left)  # before the endpoints, which pass on the responses of running requests


def _drain(ports: Sequence[Port], seconds: float) -> float:
    """Refuse new requests, and wait for the running ones. Returns what is left of `seconds`, the time that they have.

    Triton must not end before: it does not wait until its responses have been read.
    """
    deadline = time.monotonic() + seconds
    for port in ports:
        port.refuse()
    while (left := deadline - time.monotonic()) > 0 and any(port.busy for port in ports):
        time.sleep(_POLL_SECONDS)
    return max(0.0, left)


@contextlib.contextmanager
def short_lived(folder: Path) -> Iterator[tuple[Address, Path]]:
    """Serve engines or a model repository on free ports until the block ends.

    Yields the address and the engine directory. Raises RunError if the server does not exit with status 0.
    """
    from trtllm_pt.serving.triton.server import Address, Server, engine_folder

    with tempfile.TemporaryDirectory(prefix="trtllm_pt-") as scratch:
        repository = _repository(folder, Path(scratch))
        with Server(repository, Address.free(), Path(scratch) / "server.log") as server:
            _wait_until_ready(server, folder)
            yield server.address, engine_folder(repository)
            if status := server.close():
                raise RunError(f"the server exited with status {status}")


class _Ended(BaseException):
    """A signal asked this process to exit."""


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise _Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _repository(folder: Path, scratch: Path, speculative: str | None = None) -> Path:
    from trtllm_pt.serving.triton.repository import write_repository
    from trtllm_pt.serving.triton.server import is_repository

    if is_repository(folder):
        if speculative is not None:
            raise UsageError(f"--speculative: {folder} is a model repository; give the option to `trtllm-pt repo`")
        return folder
    write_repository(folder, scratch / "repository", speculative=speculative)
    return scratch / "repository"


def _wait_until_ready(server: Server, folder: Path) -> None:
    terminal = sys.stderr.isatty()
    click.echo(f"loading {folder} …", nl=not terminal, err=True)
    server.wait_until_ready(lambda seconds: _progress(folder, seconds) if terminal else None)
    if terminal:
        click.echo(err=True)


def _progress(folder: Path, seconds: float) -> None:
    click.echo(f"\rloading {folder} … {seconds:.0f} s", nl=False, err=True)


def _http_proxy(engines: Path, inside: Address, address: Address) -> AbstractContextManager[Port]:
    """Return our HTTP port before it listens. inside: Triton's own address."""
    from trtllm_pt.backends.registry import read_engine

    with _needing_packages():
        from trtllm_pt.serving.triton.http_proxy import HttpProxy
    omitted = read_engine(engines).backend.triton_omits
    return HttpProxy(inside.url, omitted).listening(address.host, address.http)


def _openai_server(
    engines: Path, name: str, address: Address, allowed_origins: tuple[str, ...], api_key: str | None
) -> OpenAIServer:
    """Return the OpenAI port before it listens. name: the model's name there. address: Triton's."""
    with _needing_packages():
        from trtllm_pt.serving.openai.app import OpenAIServer
    return OpenAIServer(engines, name, f"{address.reachable}:{address.grpc}", allowed_origins, api_key)


def _api_key(path: Path | None) -> str | None:
    with _needing_packages():
        from trtllm_pt.serving.openai.api_key import read_api_key
    return read_api_key(path)


@contextlib.contextmanager
def _needing_packages() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UsageError(f"serve needs {error.name}: {INSTALL_SERVE}") from None


def _announce(address: Address, outside: Address, openai_port: int) -> None:
    """Print the ports. address: Triton's. outside: has the host of OpenAI's port."""
    openai = f"http://{outside.reachable}:{openai_port}"
    models = f"{address.url}/v2/models"
    click.echo(f"HTTP     {models}/{{ensemble,tensorrt_llm_bls}}/{{generate,generate_stream}}")
    click.echo(f"gRPC     {address.reachable}:{address.grpc}")
    if openai_port:
        click.echo(f"OpenAI   {openai}/v1")
        click.echo(f"page     {openai}/")
    click.echo(f"metrics  http://{address.reachable}:{address.metrics}/metrics")
    click.echo(f"\ncurl -sN {models}/tensorrt_llm_bls/generate_stream -d {shlex.quote(_REQUEST)}")
    sys.stdout.flush()


def _watch(server: Server) -> None:
    while (status := server.wait(_CHECK_SECONDS)) is None:
        if (fault := server.fault()) is not None and server.fault() is not None:  # one may be a slow response
            raise RunError(f"{fault}; the server was stopped")
    raise RunError(f"the server exited unexpectedly with status {status}: {server.reason()}")
