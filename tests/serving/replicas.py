"""Two replicas behind HAProxy with deploy/proxy/haproxy.cfg, and clients that say what became of their requests.

`make replicas` prints the figures of docs/serving.md: what a lost replica and a drained one cost, and what it brings to
send the requests of a session to one replica.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.interruption import descendants
from tests.serving.test_processes import ranks_of
from trtllm_pt.cli.text import table
from trtllm_pt.serving.triton.server import free_ports

CONFIG = Path(__file__).parents[2] / "deploy" / "proxy" / "haproxy.cfg"
NAMES = ("replica1", "replica2")
PORTS = (9000, 8000, 8001)  # of OpenAI's endpoints, HTTP and gRPC in the configuration
CLIENTS, REQUESTS, TOKENS = 24, 240, 64
HUNG_SECONDS = 60.0  # without a byte
Fate = Literal["answered", "refused", "named", "broken", "hung"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request.

    fate: `refused` got no answer, `named` an error event in the stream, `broken` a stream without its end, which a
    client's library reports as an incomplete response. said: the error. replica: the name of the one that answered.
    """

    fate: Fate
    said: str = ""
    replica: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True)
class Replica:
    name: str
    ports: Sequence[int]  # in the order of PORTS
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """End all processes of the replica at once, as when its machine fails."""
        for pid in (self.process.pid, *descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_a_rank(self) -> None:
        """End one rank, which ends the engine, and then the server."""
        os.kill(ranks_of(self.process.pid)[1], signal.SIGKILL)

    def drain(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def replicas(engines: Path) -> Iterator[list[Replica]]:
    """Two servers of one engine directory, ready."""
    with contextlib.ExitStack() as running:
        started = [running.enter_context(_serve(engines, name)) for name in NAMES]
        for replica in started:
            assert replica.process.stdout is not None
            for line in replica.process.stdout:
                if line.startswith("curl"):
                    break
        yield started


@contextmanager
def _serve(engines: Path, name: str) -> Iterator[Replica]:
    openai, http_port, grpc, metrics = free_ports(4)
    command = [sys.executable, "-m", "trtllm_pt", "serve", str(engines), "--drain-seconds", "60"]
    command += ["--openai-port", str(openai), "--http-port", str(http_port), "--grpc-port", str(grpc)]
    command += ["--metrics-port", str(metrics), "--served-model-name", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        replica = Replica(name, (openai, http_port, grpc), process)
        try:
            yield replica
        finally:
            replica.kill()


class Proxy:
    """A running HAProxy before replicas. ports: its own, in the order of PORTS."""

    def __init__(self, behind: Sequence[Replica], folder: Path, *, sticky: bool = False) -> None:
        self.ports = free_ports(len(PORTS))
        self._socket = folder / "haproxy.sock"
        (folder / "haproxy.cfg").write_text(self._config(behind))
        (folder / "statistics.cfg").write_text(f"global\n    stats socket {self._socket}\n")
        self._start(folder, sticky)
        try:
            self._wait(folder / "haproxy.log")
        except BaseException:
            self.__exit__()
            raise

    def _start(self, folder: Path, sticky: bool) -> None:
        command = ["haproxy", "-db", "-f", str(folder / "haproxy.cfg"), "-f", str(folder / "statistics.cfg")]
        environment = {key: value for key, value in os.environ.items() if key != "STICKY"}
        with (folder / "haproxy.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment | ({"STICKY": "1"} if sticky else {})
            )

    def _wait(self, log: Path) -> None:
        deadline = time.monotonic() + 30
        while not self._socket.exists() or set(self.states().values()) != {"UP"}:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def _config(self, behind: Sequence[Replica]) -> str:
        text = CONFIG.read_text()
        for number, own in zip(PORTS, self.ports, strict=True):
            text = text.replace(f"bind :{number}", f"bind 127.0.0.1:{own}")
        for replica in behind:
            for number, port in zip(PORTS, replica.ports, strict=True):
                text = text.replace(f"{replica.name}:{number}", f"127.0.0.1:{port}")
        return text

    def states(self) -> dict[str, str]:
        """What HAProxy believes of each replica."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self._socket))
            client.sendall(b"show stat\n")
            text = b"".join(iter(lambda: client.recv(65536), b"")).decode()
        rows = csv.DictReader(text.removeprefix("# ").splitlines())
        own = [row for row in rows if row["pxname"] == "openai" and row["svname"] in NAMES]
        return {row["svname"]: re.sub(" .*", "", row["status"]) for row in own}

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def ask(port: int, body: dict[str, object], session: str | None = None) -> Outcome:
    """Send a streamed completion through the proxy, and read it to its end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HUNG_SECONDS)
    headers = {"Content-Type": "application/json"} | ({} if session is None else {"X-Session-ID": session})
    wanted = {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, **body}
    try:
        connection.request("POST", "/v1/completions", json.dumps(wanted), headers)
        answer = connection.getresponse()
    except TimeoutError:
        return Outcome("hung")
    except (OSError, http.client.HTTPException) as error:
        return Outcome("refused", repr(error))
    replica = answer.headers.get("X-Replica", "")
    if answer.status != 200:
        return Outcome("refused", f"{answer.status} {answer.read().decode()}", replica)
    try:
        return _read(answer, replica)
    except TimeoutError:
        return Outcome("hung", replica=replica)
    except (OSError, http.client.HTTPException) as error:
        return Outcome("broken", type(error).__name__, replica)
    finally:
        connection.close()


def _read(answer: http.client.HTTPResponse, replica: str) -> Outcome:
    usage: dict[str, object] = {}
    for line in answer:
        data = line.strip().removeprefix(b"data: ")
        if data == b"[DONE]":
            tokens, prompt = int(str(usage["completion_tokens"])), int(str(usage["prompt_tokens"]))
            details = usage["prompt_tokens_details"]
            assert isinstance(details, dict)
            return Outcome("answered", "", replica, tokens, prompt, details["cached_tokens"])
        event = json.loads(data) if data else {}
        if "error" in event:
            return Outcome("named", event["error"]["message"], replica)
        usage = event.get("usage") or usage
    return Outcome("broken", "the stream ended early", replica)


@dataclass(frozen=True, slots=True)
class Loss:
    """What a fault under load did. noticed: seconds until the proxy sent the replica no more requests."""

    outcomes: list[Outcome]
    noticed: float
    status: int

    @property
    def fates(self) -> Counter[Fate]:
        return Counter(outcome.fate for outcome in self.outcomes)

    def failures(self) -> Counter[tuple[Fate, str]]:
        """What was said to the requests that were not answered."""
        return Counter((outcome.fate, outcome.said) for outcome in self.outcomes if outcome.fate != "answered")


def under_load(proxy: Proxy, victim: Replica, fault: Callable[[], None]) -> Loss:
    """Let clients send requests, more at a time than there are slots, and `fault` happen after a third of them."""
    done = threading.Semaphore(0)

    def one(number: int) -> Outcome:
        try:
            return ask(proxy.ports[0], {"prompt": f"def function_{number}(", "max_tokens": TOKENS})
        finally:
            done.release()

    with ThreadPoolExecutor(CLIENTS) as clients:
        asked = [clients.submit(one, number) for number in range(REQUESTS)]
        for _ in range(REQUESTS // 3):
            done.acquire()
        began = time.monotonic()
        fault()
        while proxy.states()[victim.name] == "UP":
            assert time.monotonic() < began + HUNG_SECONDS, "the proxy has not noticed"
            time.sleep(0.01)
        noticed = time.monotonic() - began
        outcomes = [each.result() for each in asked]
    return Loss(outcomes, noticed, victim.process.wait(HUNG_SECONDS))


SESSIONS, TURNS, USERS = 24, 6, 8  # so many users at a time take the next turn of any session


@dataclass(frozen=True, slots=True)
class Reuse:
    """How much of the prompts of all sessions was found in the KV cache, and how many requests each replica got."""

    prompt_tokens: int
    cached_tokens: int
    requests: Counter[str]


def sessions(proxy: Proxy, *, header: bool) -> Reuse:
    """Let sessions take turns, each with a prompt that contains its earlier ones.

    header: whether a request names its session in the header X-Session-ID. Without it, the prompt tells.
    """
    draw, lock = random.Random(0), threading.Lock()
    about = f"# {draw.getrandbits(32)} {proxy.ports}"  # other text than in earlier calls, which are in the KV cache
    prompts = [f"# Session {number}\n{about}\n" for number in range(SESSIONS)]
    idle = [number for number in range(SESSIONS) for _ in range(TURNS)]
    draw.shuffle(idle)
    busy: set[int] = set()

    def turns() -> Iterator[Outcome]:
        while True:
            with lock:
                number = next((each for each in idle if each not in busy), None)
                if number is None:
                    return
                idle.remove(number)
                busy.add(number)
            prompts[number] += f"def function_{number}_{len(prompts[number])}(a, b):\n" + "    a = a * b\n" * 8
            yield ask(proxy.ports[0], {"prompt": prompts[number], "max_tokens": 8}, str(number) if header else None)
            with lock:
                busy.remove(number)

    with ThreadPoolExecutor(USERS) as users:
        outcomes = [outcome for each in users.map(lambda _: list(turns()), range(USERS)) for outcome in each]
    assert {outcome.fate for outcome in outcomes} == {"answered"}, outcomes
    return Reuse(
        sum(outcome.prompt_tokens for outcome in outcomes),
        sum(outcome.cached_tokens for outcome in outcomes),
        Counter(outcome.replica for outcome in outcomes),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", type=Path)
    engines = parser.parse_args().engines
    if shutil.which("haproxy") is None:
        sys.exit("make replicas needs HAProxy: apt-get install haproxy")
    wrong = False
    rows = []
    for title, fault in (("a replica is killed", Replica.kill), ("a rank is killed", Replica.kill_a_rank)):
        loss = _loss(engines, fault)
        rows.append(_row(title, loss))
        wrong |= bool(loss.fates["refused"] or loss.fates["hung"])
    loss = _loss(engines, Replica.drain)
    rows.append(_row("a replica is drained (SIGTERM)", loss))
    wrong |= loss.fates["answered"] != REQUESTS
    print(f"{REQUESTS} streamed requests of {TOKENS} tokens, {CLIENTS} at a time")
    print(table(rows, ["", "answered", "refused", "error event", "cut off", "hung", "noticed after"]))
    print(f"\n{SESSIONS} sessions of {TURNS} requests, {USERS} requests at a time, in random order")
    print(table(list(_reuse(engines)), ["requests go to", "prompt tokens reused", "requests per replica"]))
    sys.exit(1 if wrong else 0)


def _loss(engines: Path, fault: Callable[[Replica], None]) -> Loss:
    with (
        tempfile.TemporaryDirectory() as folder,
        replicas(engines) as running,
        Proxy(running, Path(folder)) as proxy,
    ):
        return under_load(proxy, running[0], lambda: fault(running[0]))


def _row(title: str, loss: Loss) -> list[str]:
    fates = loss.fates
    counts = [str(fates[fate]) for fate in ("answered", "refused", "named", "broken", "hung")]
    return [title, *counts, f"{loss.noticed:.2f} s"]


def _reuse(engines: Path) -> Iterator[list[str]]:
    ways = (
        ("the replica with the fewest requests", False, False),
        ("one replica per header X-Session-ID (STICKY=1)", True, True),
        ("one replica per first 256 characters of the prompt (STICKY=1)", True, False),
    )
    with replicas(engines) as running:
        for title, sticky, header in ways:
            with tempfile.TemporaryDirectory() as folder, Proxy(running, Path(folder), sticky=sticky) as proxy:
                reuse = sessions(proxy, header=header)
            share = f"{100 * reuse.cached_tokens / reuse.prompt_tokens:.0f} % of {reuse.prompt_tokens}"
            yield [title, share, " and ".join(str(reuse.requests[name]) for name in NAMES)]


if __name__ == "__main__":
    main()
