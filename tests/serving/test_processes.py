"""Servers that are started, ended, moved and broken: `trtllm-pt serve`, and tritonserver by itself."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import pytest

from tests.interruption import descendants
from tests.serving.client import END, Stream, ask, ids_of, post, tokens, until
from tests.serving.conftest import Served, needs_triton
from tests.serving.conftest import running as running_server
from tests.serving.test_repository import engines as engine_folder
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.runtime.llm import LLM
from trtllm_pt.serving.triton.find import find_triton
from trtllm_pt.serving.triton.repository import write_repository
from trtllm_pt.serving.triton.server import Address, Server, free_ports

pytestmark = needs_triton

PROMPT = "def binary_search("
ROOT = Path(__file__).parents[2]
T = TypeVar("T")
PTRACE_SEIZE, PTRACE_INTERRUPT, WAIT_ALL = 0x4206, 0x4207, 0x40000000
PYTHON_MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")


@contextmanager
def serve(
    folder: Path, listening: list[int] | None = None, options: Iterable[str] = ()
) -> Iterator[tuple[subprocess.Popen[str], Served, list[str]]]:
    """`trtllm-pt serve`: the process, where it listens, and what it printed until it was ready.

    options: of the group `trtllm-pt`.
    """
    http, grpc, metrics, openai = listening or free_ports(4)
    ports = ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
    ports += ["--openai-port", str(openai)]
    command = [sys.executable, "-m", "trtllm_pt", *options, "serve", str(folder), *ports]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            printed = list(until_curl(process.stdout))
            yield process, Served(folder, http, grpc, metrics), printed
        finally:
            process.kill()


def until_curl(lines: IO[str]) -> Iterator[str]:
    for line in lines:
        yield line.rstrip("\n")
        if line.startswith("curl"):
            return


def gone(pids: set[int], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while left := {pid for pid in pids if running(pid)}:
        if time.monotonic() > deadline:
            return not left
        time.sleep(0.05)
    return True


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def shared_memory() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("trtllm_pt-serve")}


def test_serve_prints_a_curl_that_streams_and_ends_cleanly(engines: Path) -> None:
    before = shared_memory()
    with serve(engines) as (process, served, printed):
        words = shlex.split(printed[-1])
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        pieces = re.findall(r'"text_output":"(.*?)"}', done.stdout)
        assert len(pieces) > 1
        assert f"127.0.0.1:{served.grpc}" in "\n".join(printed)
        [url] = re.findall("http.*/v1", "\n".join(printed))
        with urllib.request.urlopen(f"{url}/models", timeout=10) as answer:
            assert json.loads(answer.read())["data"][0]["id"] == engines.name
        started = descendants(process.pid)
        assert len(started) > 6  # the server, four Python models, mpirun, two ranks
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", f"loading {engines} …\n")
        assert gone(started)
    assert shared_memory() == before


def test_serve_that_is_killed_takes_all_along(engines: Path) -> None:
    with serve(engines) as (process, _, _):
        started = descendants(process.pid)
        process.kill()
        assert gone(started, 30)


def test_a_port_that_is_taken_is_named(engines: Path, served: Served) -> None:
    command = [sys.executable, "-m", "trtllm_pt", "serve", str(engines), "--http-port", str(served.http)]
    ports = free_ports(2)
    command += ["--grpc-port", str(ports[0]), "--metrics-port", str(ports[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"--http-port ({served.http}) is taken" in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "there is no engine directory at"), (".", "is not an engine directory")],
)
def test_what_cannot_be_served_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    command = [sys.executable, "-m", "trtllm_pt", "serve", str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def hold(pid: int) -> None:
    """Its main thread alone stops, as one that waits for ever: the process goes on telling others that it is there."""
    done = threading.Event()
    threading.Thread(target=_hold, args=(pid, done), daemon=True).start()
    assert done.wait(10)


def _hold(pid: int, done: threading.Event) -> None:
    libc = ctypes.CDLL(None)
    arguments = ctypes.c_long(pid), None, None
    assert libc.ptrace(PTRACE_SEIZE, *arguments) == libc.ptrace(PTRACE_INTERRUPT, *arguments) == 0
    done.set()
    with contextlib.suppress(ChildProcessError):
        while os.WIFSTOPPED(os.waitpid(pid, WAIT_ALL)[1]):  # its parent hears of its end after this thread
            pass


Fault = tuple[Callable[[int], None], int, str]  # what happens to a process, of which rank, and what is said of it
FAULTS: list[Fault] = [
    (kill, 0, "(was killed by signal 9|has exited)"),
    (stop, 1, "has not answered for 8 s"),
    (hold, 0, "has not answered for 8 s"),
    (kill, 1, "(was killed by signal 9|has exited)"),
    (stop, 0, "has not answered for 8 s"),
    (hold, 1, "has not answered for 8 s"),
]


def break_under_a_stream(server: int, served: Served, fault: Callable[[int], None], rank: int, how: str) -> None:
    """The request in flight ends with an error that names the rank."""
    answers = iter(Stream(served, "tensorrt_llm", tokens([5, 6, 7], 900, end_id=END, streaming=True)))
    next(answers)
    victim = ranks_of(server)[rank]
    fault(victim)
    with pytest.raises(Exception, match=rf"the engine is down: rank {rank} \(process {victim}\) {how}"):
        list(answers)


@pytest.mark.parametrize(
    ("faults", "again"),
    [
        pytest.param((FAULTS[0], FAULTS[2]), False, id="killed and held"),
        pytest.param(FAULTS[:3], True, id="all, and served again", marks=pytest.mark.slow),
    ],
)
def test_serve_ends_naming_the_rank_that_died_or_hangs(engines: Path, faults: list[Fault], again: bool) -> None:
    def one(which: Fault) -> None:
        fault, rank, how = which
        ports = free_ports(4)
        with serve(engines, ports) as (process, served, _):
            started = descendants(process.pid)
            break_under_a_stream(process.pid, served, fault, rank, how)
            _, err = process.communicate(timeout=60)
            assert process.returncode == 1
            assert re.search(rf"Error: the engine is down: rank {rank} .*{how}.*; the server was stopped", err), err
            assert gone(started)
            assert not ready(served)
        if again and fault is kill:
            with serve(engines, ports) as (_, served, _):
                assert ready(served)

    side_by_side(one, faults)


@pytest.mark.parametrize(
    "models", [PYTHON_MODELS[2:3], pytest.param(PYTHON_MODELS, marks=pytest.mark.slow)], ids=["one", "each"]
)
def test_serve_ends_naming_the_model_whose_process_died(engines: Path, models: tuple[str, ...]) -> None:
    def one(model: str) -> None:
        with serve(engines) as (process, _, _):
            started = descendants(process.pid)
            kill(stubs(started)[model])
            _, err = process.communicate(timeout=60)
            assert process.returncode == 1 and f"Stub process '{model}_0_0' is not healthy" in err, err
            assert gone(started)

    side_by_side(one, models)


def side_by_side(work: Callable[[T], None], those: Iterable[T]) -> None:
    """For tests that wait most of their time."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, those))


def ranks_of(pid: int) -> dict[int, int]:
    """The processes of the ranks that a process has started."""
    variables = {child: environment_of(child) for child in descendants(pid)}
    return {int(found["PMI_RANK"]): child for child, found in variables.items() if "PMI_RANK" in found}


@pytest.mark.slow
def test_a_tritonserver_that_is_killed_leaves_nothing(engines: Path) -> None:
    with serve(engines) as (process, served, _):
        started = descendants(process.pid)
        stream = Stream(served, "tensorrt_llm", tokens([5, 6, 7], 900, end_id=END, streaming=True))
        next(iter(stream))
        [server] = [pid for pid in started if "bin/tritonserver" in command_of(pid)]
        os.kill(server, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1 and "the server exited unexpectedly with status -9" in err, err
        assert gone(started, 20)


@pytest.mark.slow
def test_models_that_hang_when_their_server_is_killed_are_ended(engines: Path) -> None:
    with serve(engines) as (process, _, _):
        started = descendants(process.pid)
        for stub in stubs(started).values():
            os.kill(stub, signal.SIGSTOP)
        [server] = [pid for pid in started if "bin/tritonserver" in command_of(pid)]
        os.kill(server, signal.SIGKILL)
        assert gone(started, 20)
        assert process.wait(60) == 1


def test_serve_that_ends_while_requests_run_gives_them_time(engines: Path) -> None:
    with serve(engines) as (process, served, _):
        stream = Stream(served, "tensorrt_llm", tokens([5, 6, 7], 200, end_id=END, streaming=True))
        answers = iter(stream)
        first = next(answers)
        process.send_signal(signal.SIGTERM)
        assert len(ids_of([first, *answers])) == 200
        process.communicate(timeout=60)
        assert process.returncode == 0


@pytest.mark.slow
def test_a_request_may_run_for_longer_than_models_may_take_to_unload(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtllm_pt.serving.triton.server._UNLOAD_SECONDS", 0.3)
    with running_server(engines, tmp_path) as (served, server), ThreadPoolExecutor() as pool:
        answers = iter(Stream(served, "tensorrt_llm", tokens([5, 6, 7], 900, end_id=END, streaming=True)))
        first = next(answers)
        closing = pool.submit(server.close)
        assert len(ids_of([first, *answers])) == 900
        closing.result()


@pytest.mark.slow
def test_serve_that_ends_passes_on_what_openais_clients_wait_for(engines: Path) -> None:
    openai = pytest.importorskip("openai", reason="no OpenAI client here: pip install -e '.[embedded,dev,serve]'")
    with serve(engines) as (process, _, printed):
        [url] = re.findall("http.*/v1", "\n".join(printed))
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        asked = {"prompt": PROMPT, "max_tokens": 200, "extra_body": {"ignore_eos": True}, "stream": True}
        parts = iter(client.completions.create(model=engines.name, stream_options={"include_usage": True}, **asked))
        next(parts)
        process.send_signal(signal.SIGTERM)
        assert list(parts)[-1].usage.completion_tokens == 200
        assert process.communicate(timeout=60)[1] == f"loading {engines} …\n"
        assert process.returncode == 0


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def environment_of(pid: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:  # it has ended since it was listed
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


@contextmanager
def plain(
    root: Path, engines: Path, *options: str, model: str = "tensorrt_llm"
) -> Iterator[tuple[subprocess.Popen[bytes], Served]]:
    """tritonserver by itself over `root`/repository, which serves `engines`, when `model` is ready."""
    http, grpc, metrics = free_ports(3)
    served = Served(engines, http, grpc, metrics)
    triton = find_triton(root)
    command = [str(triton.binary), *triton.options, f"--model-repository={root / 'repository'}", *options]
    command += ["--disable-auto-complete-config"]
    command += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    with (
        open(root / "log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=dict(triton.environment)) as process,
    ):
        try:
            deadline = time.monotonic() + 120
            while not is_up(served, model):
                assert time.monotonic() < deadline and process.poll() is None, (root / "log").read_text()
                time.sleep(0.2)
            yield process, served
        finally:
            process.terminate()
            assert process.wait(60) == 0


@pytest.mark.slow
def test_the_repository_in_git_moves_and_plain_tritonserver_loads_it_again_after_each_fault(
    engines: Path, tmp_path: Path
) -> None:
    import tritonclient.http as http_client

    shutil.copytree(ROOT / "triton_model_repo", tmp_path / "repository")
    shutil.copytree(engines, tmp_path / "engines" / "demo-2")
    with LLM(engines) as llm:
        [wanted] = llm.generate([[5, 6, 7]], SamplingParams(max_tokens=8, end_id=-1))
    with (
        plain(tmp_path, engines, "--model-control-mode=explicit", "--load-model=*") as (process, served),
        http_client.InferenceServerClient(f"127.0.0.1:{served.http}") as client,
    ):
        for fault, rank, how in FAULTS[3:]:
            ranks = set(ranks_of(process.pid).values())
            assert ids_of(ask(served, "tensorrt_llm", tokens([5, 6, 7], 8, end_id=END))) == list(wanted.token_ids)
            break_under_a_stream(process.pid, served, fault, rank, how)
            until(lambda: not client.is_model_ready("tensorrt_llm") and not client.is_model_ready("ensemble"))
            assert gone(ranks)
            client.load_model("tensorrt_llm")
            until(lambda: client.is_model_ready("tensorrt_llm") and client.is_model_ready("ensemble"))
        assert ids_of(ask(served, "tensorrt_llm", tokens([5, 6, 7], 8, end_id=END))) == list(wanted.token_ids)


def test_a_plain_tritonserver_that_cannot_load_the_model_again_ends(engines: Path, tmp_path: Path) -> None:
    write_repository(engines, tmp_path / "repository")
    with plain(tmp_path, engines) as (process, served), openai_health(engines, served) as health:
        started = descendants(process.pid)
        assert health() == (200, "")
        break_under_a_stream(process.pid, served, *FAULTS[3])
        with pytest.raises(Exception, match="the engine is down: rank 1"):
            ask(served, "tensorrt_llm", tokens([5, 6, 7], 8, end_id=END))
        status, words = health()
        assert status == 503 and "tensorrt_llm does not answer: the engine is down: rank 1" in words
        assert process.wait(60) == 0 and gone(started)
        assert health()[0] == 503


@pytest.mark.slow
def test_a_plain_tritonserver_whose_model_died_ends(engines: Path, tmp_path: Path) -> None:
    def one(model: str) -> None:
        (tmp_path / model).mkdir()
        write_repository(engines, tmp_path / model / "repository")
        with plain(tmp_path / model, engines) as (process, _):
            started = descendants(process.pid)
            kill(stubs(started)[model])
            assert process.wait(60) == 0 and gone(started)

    side_by_side(one, ("tensorrt_llm", "tensorrt_llm_bls"))


@pytest.mark.slow
def test_a_plain_tritonserver_withdraws_a_model_whose_process_died_and_loads_it_again(
    engines: Path, tmp_path: Path
) -> None:
    import tritonclient.http as http_client

    write_repository(engines, tmp_path / "repository")
    asked = {"text_input": PROMPT, "max_tokens": 8}
    with (
        plain(tmp_path, engines, "--model-control-mode=explicit", "--load-model=*") as (process, served),
        http_client.InferenceServerClient(f"127.0.0.1:{served.http}") as client,
    ):
        first = [post(served, model, asked) for model in ("ensemble", "tensorrt_llm_bls")]
        for model in PYTHON_MODELS:
            stub = stubs(descendants(process.pid))[model]
            kill(stub)
            until(lambda model=model: not client.is_model_ready(model))
            client.load_model(model)
            assert client.is_model_ready(model) and stubs(descendants(process.pid))[model] != stub
        until(lambda: client.is_model_ready("ensemble"))
        assert [post(served, model, asked) for model in ("ensemble", "tensorrt_llm_bls")] == first


@contextmanager
def openai_health(engines: Path, served: Served) -> Iterator[Callable[[], tuple[int, str]]]:
    """OpenAI's endpoints: status and words of their health."""
    from trtllm_pt.serving.openai.app import OpenAIServer

    [port] = free_ports(1)

    def health() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30) as answer:
                return answer.status, ""
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with OpenAIServer(engines, "demo", f"127.0.0.1:{served.grpc}").listening("127.0.0.1", port):
        yield health


def stubs(pids: set[int]) -> dict[str, int]:
    """The processes of Triton's Python models, by model."""
    commands = {pid: command_of(pid).split() for pid in pids if running(pid)}
    found = {pid: words[1] for pid, words in commands.items() if words and "python_backend_stub" in words[0]}
    return {Path(code).parts[-3]: pid for pid, code in found.items()}


def is_up(served: Served, model: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{served.http}/v2/models/{model}/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ready(served: Served) -> bool:
    try:
        return post(served, "tensorrt_llm", {"input_ids": [5], "input_lengths": 1, "request_output_len": 1})[0] == 200
    except OSError:
        return False


def test_the_real_server_reads_the_repository_of_tensorrt_engines(tmp_path: Path) -> None:
    """All that it lacks is the backend."""
    import tritonclient.http as http_client
    from tritonclient.utils import InferenceServerException

    folder = engine_folder(tmp_path / "engines", "tensorrt_llm")
    shutil.copytree(ROOT / "pretrained" / "stdlib-pt", folder / "tokenizer")
    write_repository(folder, tmp_path / "repository")
    explicit = ("--model-control-mode=explicit", "--load-model=postprocessing", "--load-model=preprocessing")
    with (
        plain(tmp_path, folder, *explicit, model="postprocessing") as (_, served),
        http_client.InferenceServerClient(f"127.0.0.1:{served.http}") as client,
    ):
        client.load_model("tensorrt_llm_bls")
        with pytest.raises(InferenceServerException, match="unable to find backend library for backend 'tensorrtllm'"):
            client.load_model("tensorrt_llm")
        with pytest.raises(InferenceServerException, match="ensemble 'ensemble' depends on 'tensorrt_llm'"):
            client.load_model("ensemble")


def test_a_model_that_does_not_load_says_why(engines: Path, tmp_path: Path) -> None:
    from trtllm_pt.errors import RunError

    write_repository(engines, tmp_path / "repository", engine_path="/nowhere")
    http, grpc, metrics = free_ports(3)
    address = Address(http=http, grpc=grpc, metrics=metrics)
    with (
        Server(tmp_path / "repository", address, tmp_path / "log") as server,
        pytest.raises(RunError, match=r"(tensorrt_llm\w*|preprocessing|postprocessing): .* /nowhere|/nowhere/"),
    ):
        server.wait_until_ready()
