"""The runtime protocol on TensorRT-LLM's executor: a stand-in held to the real bindings, on one rank and on several."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backends.tensorrt_llm.executor.bindings import CATALOGUE, load
from tests.backends.tensorrt_llm.executor.engine import FAILS, METHODS, MODULE, NOT_A_NUMBER, toy_logits
from tests.backends.tensorrt_llm.executor.folders import MODEL, WINDOWED, engine_folder
from tests.backends.tensorrt_llm.executor.site import install
from tests.cli.conftest import Done, run_in
from trtllm_pt.backends.embedded.kernels import library as op_library
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.backends.tensorrt_llm.runtime import TensorRTRuntime, check_gpus
from trtllm_pt.backends.tensorrt_llm.terms import executor_config
from trtllm_pt.batching.sampling import sample
from trtllm_pt.errors import INSTALL_TENSORRT_LLM, MPI_OF_TENSORRT_LLM, RunError, UsageError
from trtllm_pt.job.mpirun import find_mpirun
from trtllm_pt.job.world import World
from trtllm_pt.requests.messages import FinishReason, Request, SamplingParams, Tokens
from trtllm_pt.requests.sequence import Sequence
from trtllm_pt.runtime.llm import LLM

PROMPT = (3, 11, 4, 3)
INSTALL = re.escape(INSTALL_TENSORRT_LLM)


def start(folder: Path, bindings: Any = MODULE) -> TensorRTRuntime:
    manifest = read_engine(folder)
    config = executor_config(bindings, manifest, None)
    executor = bindings.Executor(folder, bindings.ModelType.DECODER_ONLY, config)
    return TensorRTRuntime(executor, bindings, manifest, [os.getpid()], ["here"])


@pytest.fixture(scope="module", autouse=True)
def _ops(library: Path) -> None:
    """`expected` computes log-probs with the embedded engine's ops."""
    op_library.load(library)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[TensorRTRuntime]:
    made = start(engine_folder(tmp_path / "engines"))
    yield made
    made.close()


def request(id: int = 0, prompt: tuple[int, ...] = PROMPT, **sampling: Any) -> Request:
    return Request(id=id, token_ids=prompt, sampling=SamplingParams(**{"max_tokens": 12, **sampling}))


def drain(runtime: TensorRTRuntime) -> dict[int, list[Tokens]]:
    messages: dict[int, list[Tokens]] = {}
    while runtime.busy:
        for message in runtime.poll(1.0):
            messages.setdefault(message.id, []).append(message)
    return messages


Output = tuple[tuple[int, ...], tuple[float, ...], FinishReason | None]


def joined(messages: list[Tokens]) -> Output:
    assert [m.finish_reason is None for m in messages] == [True] * (len(messages) - 1) + [False]
    tokens = tuple(token for m in messages for token in m.token_ids)
    return tokens, tuple(p for m in messages for p in m.log_probs), messages[-1].finish_reason


def expected(request: Request) -> Output:
    """What the embedded engine's sampler makes of the same logits."""
    sequence = Sequence.start(request, min(len(request.token_ids) + request.sampling.max_tokens, 64), -1)
    reason = None
    while reason is None:
        row = toy_logits(sequence.tokens, MODEL.vocab_size)
        [token], [score], _ = sample(row[None], [sequence])
        reason = sequence.take(token, score)
    last = sequence.end(reason)
    return last.token_ids, last.log_probs, reason


def submit(runtime: TensorRTRuntime, *requests: Request) -> dict[int, Output]:
    for one in requests:
        runtime.submit(one)
    return {id: joined(messages) for id, messages in drain(runtime).items()}


FREE = expected(request())[0]  # greedy, and nothing else
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.7, "seed": 5},
    "a tiny temperature": {"temperature": 1e-9},
    "seed": {"temperature": 1.0, "seed": 2**64 - 1},
    "top_k": {"temperature": 1.3, "top_k": 4},
    "top_p": {"temperature": 1.3, "top_p": 0.6},
    "top_k and top_p": {"temperature": 1.3, "top_k": 9, "top_p": 0.7},
    "min_p": {"temperature": 1.3, "min_p": 0.1},
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 2.5},
    "frequency": {"frequency_penalty": -1.5},
    "all penalties, warm": {
        "temperature": 1.6,
        "repetition_penalty": 1.3,
        "presence_penalty": 1.1,
        "frequency_penalty": 0.4,
    },
    "penalties at temperature 1": {"temperature": 1.0, "presence_penalty": 1.1, "frequency_penalty": 0.4},
    "end_id": {"end_id": FREE[5]},
    "min_tokens": {"end_id": FREE[2], "min_tokens": 6},
    "stop word": {"stop_words": (FREE[4:5],)},
    "stop words": {"stop_words": ((FREE[1], 49), FREE[3:6], FREE[4:6])},
    "stop words that stay": {"stop_words": (FREE[3:6],), "include_stop_words": True},
    "bad words": {"bad_words": (FREE[0:1], FREE[3:5])},
    "log_probs": {"log_probs": True},
    "log_probs of draws": {"log_probs": True, "temperature": 1.0, "top_k": 5, "top_p": 0.9},
    "log_probs and a stop word": {"log_probs": True, "stop_words": (FREE[3:6],)},
    "beyond max_seq_len": {"max_tokens": 10**12},
}


@pytest.mark.parametrize("name", SAMPLING)
def test_a_field_means_what_it_means_on_the_embedded_engine(runtime: TensorRTRuntime, name: str) -> None:
    one = request(**SAMPLING[name])
    tokens, log_probs, reason = expected(one)
    got = submit(runtime, one)[0]
    assert (got[0], got[2]) == (tokens, reason)
    assert got[1] == pytest.approx(log_probs, abs=1e-5)
    if name not in ("greedy", "a tiny temperature"):
        assert expected(one) != expected(request()), "the field changed nothing"


def test_a_penalty_of_the_prompt_is_for_repetition_alone(runtime: TensorRTRuntime) -> None:
    """The prompt has every token: presence and frequency, were it counted, would fall on all alike or by its counts."""
    prompt = tuple(range(9, 40)) + (9,) * 5
    for sampling in ({"frequency_penalty": 3.0}, {"presence_penalty": 3.0}, {"repetition_penalty": 3.0}):
        one = request(prompt=prompt, **sampling)
        assert submit(runtime, one)[0] == expected(one)


@pytest.mark.parametrize("words", ["stop_words", "bad_words"])
def test_words_that_the_prompt_begins(runtime: TensorRTRuntime, words: str) -> None:
    """Stop words do not reach back into the prompt. Bad words do: that is the executor's."""
    one = request(**{words: ((PROMPT[-1], FREE[0]),)})
    tokens, _, reason = submit(runtime, one)[0]
    if words == "stop_words":
        assert (tokens, reason) == (FREE, "length")
    else:
        assert tokens[0] != FREE[0]


def test_requests_in_flight_get_what_each_gets_alone(runtime: TensorRTRuntime) -> None:
    """More than the engine has slots."""
    fields = list(SAMPLING.values())
    requests = [request(n, (n % 7 + 10,) * (n % 5 + 1), **fields[n % len(fields)]) for n in range(60)]
    got = submit(runtime, *requests)
    for one in requests:
        assert got[one.id][0] == expected(one)[0], one
        assert got[one.id][2] == expected(one)[2]


def test_tokens_come_one_by_one_and_the_start_of_a_stop_word_waits(runtime: TensorRTRuntime) -> None:
    runtime.submit(request(stop_words=((FREE[2], FREE[3], 49),)))
    messages = drain(runtime)[0]
    sizes = [len(message.token_ids) for message in messages]
    assert sizes[:3] == [1, 1, 3], "the third token waits for the next two"
    assert joined(messages)[0] == FREE


def test_cancel(runtime: TensorRTRuntime) -> None:
    runtime.submit(request(0, max_tokens=50))
    runtime.submit(request(1))
    seen: list[Tokens] = []
    while not any(m.id == 0 for m in seen):
        seen += runtime.poll(1.0)
    runtime.cancel(0)
    runtime.cancel(0)
    runtime.cancel(77)
    runtime.submit(request(0))  # the id is free again
    rest = drain(runtime)
    [first, *_] = rest[0]
    assert first.finish_reason == "cancelled"
    assert joined(rest[0][1:])[0] == FREE, "nothing of the cancelled one came after its end"
    assert joined([m for m in seen if m.id == 1] + rest[1])[0] == FREE


def test_a_prompt_is_cancelled_before_its_first_token(runtime: TensorRTRuntime) -> None:
    executor = runtime._executor.does
    runtime.submit(request(0, (9,) * 40, max_tokens=20))
    runtime.cancel(0)
    [message] = runtime.poll(0)
    assert message.finish_reason == "cancelled" and executor.cancels == [1]
    assert not runtime.busy and drain(runtime) == {}
    runtime.submit(request(1))
    assert joined(drain(runtime)[1])[0] == FREE


def test_close_does_not_wait_for_requests(tmp_path: Path) -> None:
    runtime = start(engine_folder(tmp_path / "engines"))
    for id in range(9):
        runtime.submit(request(id, max_tokens=50))
    executor = runtime._executor.does
    runtime.close()
    assert len(executor.cancels) == 9
    assert executor.iteration < 50
    runtime.close()
    runtime.cancel(0)
    for call in (lambda: runtime.submit(request()), lambda: runtime.poll(0), runtime.stats):
        with pytest.raises(UsageError, match="this engine is closed"):
            call()


def test_an_error_is_its_request_s_own(runtime: TensorRTRuntime) -> None:
    for one in (request(0), request(1, (FAILS, 1)), request(2)):
        runtime.submit(one)
    messages = drain(runtime)
    assert joined(messages[0])[0] == joined(messages[2])[0] == FREE
    tokens, _, reason = joined(messages[1])
    assert (len(tokens), reason) == (2, "error"), "what came before it"
    assert messages[1][-1].error == "Encountered an error in forwardAsync function: out of luck"


def test_stats(runtime: TensorRTRuntime) -> None:
    idle = runtime.stats()
    assert (idle.steps, idle.active_requests, idle.waiting_requests, idle.kv_pages_total) == (0, 0, 0, 0)
    for id in range(6):
        runtime.submit(request(id, max_tokens=50))
    while (running := runtime.stats()).waiting_requests != 2 and runtime.busy:  # it begins before it has heard of all
        runtime.poll(1.0)
    assert (running.active_requests, running.waiting_requests) == (4, 2) and running.kv_pages_used > 0
    drain(runtime)
    runtime.submit(request(6, end_id=FREE[5]))
    drain(runtime)
    after = runtime.stats()
    assert (after.active_requests, after.waiting_requests) == (0, 0)
    assert (after.prompt_tokens, after.output_tokens) == (7 * len(PROMPT), 6 * 50 + 6), "end ids included"
    assert after.steps > running.steps
    assert (after.sync_points_seen, after.hops_per_step, after.preemptions) == (None, None, 0)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "top_k": ({"top_k": 1025}, r"top_k \(1025\) must be at most 1024"),
    "overflow": ({"repetition_penalty": 1e300}, r"repetition_penalty \(1e\+300\) must be within 1e\+30"),
    "min_p and top_p": (
        {"temperature": 1.0, "min_p": 0.1, "top_p": 0.9},
        r"min_p \(0.1\) must be 0.0 with top_p below 1",
    ),
    "min_tokens of one": ({"min_tokens": 1}, r"min_tokens \(1\) must be 0 or at least 2"),
    "min_tokens and stop words": (
        {"min_tokens": 3, "stop_words": ((1,),)},
        r"min_tokens \(3\) must be 0 with stop_words",
    ),
    "log_probs and temperature": (
        {"log_probs": True, "temperature": 0.5},
        r"temperature \(0.5\) must be 0 or 1 with log_probs",
    ),
    "top_log_probs": ({"log_probs": True, "top_log_probs": 3}, r"top_log_probs \(3\) is not supported"),
    "processed_log_probs": (
        {"log_probs": True, "processed_log_probs": True},
        r"processed_log_probs \(True\) is not supported",
    ),
    "prompt_log_probs": ({"prompt_log_probs": True}, r"prompt_log_probs \(True\) is not supported"),
    "log_probs and penalties": (
        {"log_probs": True, "presence_penalty": 0.5},
        r"presence_penalty \(0.5\) must be 0.0 with log_probs",
    ),
    "log_probs and bad words": (
        {"log_probs": True, "bad_words": ((1,),)},
        r"bad_words \(\(\(1,\),\)\) must be \(\) with log_probs",
    ),
    "a value without sense": ({"temperature": -1.0}, r"temperature \(-1.0\) must be a number at least 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_executor_cannot_do_is_refused(runtime: TensorRTRuntime, name: str) -> None:
    sampling, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        runtime._limits.check(request(**sampling))
    assert not runtime.busy


def test_limits_are_those_of_every_engine(runtime: TensorRTRuntime) -> None:
    with pytest.raises(UsageError, match=r"has 64 tokens and must be shorter than max_seq_len \(64\), which counts"):
        runtime.submit(request(prompt=(1,) * 64))
    runtime.submit(request())
    with pytest.raises(UsageError, match=r"id \(0\) belongs to a request that is still in flight"):
        runtime.submit(request())


def test_what_nobody_foresaw_is_refused_in_one_line(runtime: TensorRTRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any, request: Any) -> int:
        raise RuntimeError("[TensorRT-LLM][ERROR] Assertion failed: mMaxNewTokens > 0\n1  0x7f frame")

    monkeypatch.setattr(type(runtime._executor), "enqueue_request", fail)
    with pytest.raises(UsageError, match=r"does not accept this request: .*mMaxNewTokens > 0$"):
        runtime.submit(request())


def settings(folder: Path, kv_tokens: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    config = executor_config(MODULE, read_engine(folder), kv_tokens)
    return config.values, config.kv_cache_config.values


def test_the_executor_is_set_up_as_the_engine_allows(tmp_path: Path) -> None:
    config, cache = settings(engine_folder(tmp_path / "paged"), kv_tokens=640)
    assert config["enable_chunked_context"] is cache["enable_block_reuse"] is True
    assert (cache["max_tokens"], cache["max_attention_window"]) == (640, None)
    config, cache = settings(engine_folder(tmp_path / "plain", use_paged_context_fmha=False))
    assert config["enable_chunked_context"] is cache["enable_block_reuse"] is False


def test_windows_come_from_the_engine(tmp_path: Path) -> None:
    """Layer by layer; the model's longest for layers without one, cut to what the engine was built for."""
    folder = engine_folder(tmp_path / "windows", model=WINDOWED.replace(max_position_embeddings=4096))
    config, cache = settings(folder)
    stored = json.loads((folder / "config.json").read_text())["pretrained_config"]["runtime_defaults"]
    assert cache["max_attention_window"] == [min(window, 64) for window in stored["max_attention_window"]]
    assert cache["max_attention_window"] == [9, 64, 9, 64]
    assert cache["enable_block_reuse"] is config["enable_chunked_context"] is False


@pytest.mark.parametrize(
    ("pattern", "window", "version", "reuse"),
    [
        (("global",), None, "1.2.1", True),
        (("sliding", "global"), 9, "1.2.1", False),
        (("sliding",), 9, "1.2.1", True),
        (("sliding", "global"), 64, "1.2.1", True),  # a window that holds every sequence of this engine
        (("global",), None, "1.2.0", False),
        (("global",), None, "1.3.0rc3", False),
    ],
)
def test_blocks_are_reused_where_1_2_1_does_it_right(
    tmp_path: Path, pattern: tuple[str, ...], window: int | None, version: str, reuse: bool
) -> None:
    model = MODEL.replace(attention_pattern=pattern, window=window, max_position_embeddings=128)
    folder = engine_folder(tmp_path / "engines", model=model, version=version)
    assert read_engine(folder).reuses_pages is reuse
    assert settings(folder)[1]["enable_block_reuse"] is reuse


def test_a_limit_that_tensorrt_llm_ignores_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(UsageError, match=r"kv_tokens \(640\) cannot limit the KV cache .* different windows"):
        LLM(engine_folder(tmp_path / "engines", model=WINDOWED), kv_tokens=640)


# The test of the test: what the bindings do not have must not go unnoticed.
RENAMED = {
    "an enum member": ["enums", "ModelType", "DECODER_ONLY"],
    "a finish reason": ["enums", "FinishReason", "LENGTH"],
    "a keyword of ExecutorConfig": ["classes", "ExecutorConfig", "init", "enable_chunked_context"],
    "a keyword of KvCacheConfig": ["classes", "KvCacheConfig", "init", "max_attention_window"],
    "a keyword of SamplingConfig": ["classes", "SamplingConfig", "init", "prompt_ignore_length"],
    "a keyword of OutputConfig": ["classes", "OutputConfig", "init", "return_log_probs"],
    "a keyword of Request": ["classes", "Request", "init", "bad_words"],
    "an argument that is new": ["classes", "Request", "init", "new"],
    "a method of Executor": ["classes", "Executor", "methods", "await_responses"],
    "another method": ["classes", "Executor", "methods", "can_enqueue_requests"],
    "a method of Response": ["classes", "Response", "methods", "has_error"],
    "an attribute of Response": ["classes", "Response", "attributes", "request_id"],
    "an attribute of Result": ["classes", "Result", "attributes", "output_token_ids"],
    "an attribute of IterationStats": ["classes", "IterationStats", "attributes", "kv_cache_stats"],
    "an attribute of KvCacheStats": ["classes", "KvCacheStats", "attributes", "used_num_blocks"],
}


def renamed(path: list[str]) -> dict[str, Any]:
    catalogue: Any = copy.deepcopy(CATALOGUE)
    *way, name = path
    part = catalogue
    for step in way:
        part = part[step]
    if way[-1] == "init":
        for parameter in part[0]:
            if parameter[0] == name:
                parameter[0] = "renamed"
        if name == "new":
            part[0].append([name, "keyword_only", "required", "bool"])
    elif isinstance(part, list):
        part[part.index(name)] = "RENAMED"
    else:
        part["renamed"] = part.pop(name)
    assert catalogue != CATALOGUE
    changed: dict[str, Any] = catalogue
    return changed


def use(folder: Path, bindings: Any) -> None:
    runtime = start(folder, bindings)
    assert runtime._executor.can_enqueue_requests()
    runtime.submit(request())
    assert joined(drain(runtime)[0])[0] == FREE
    assert runtime.stats().kv_pages_used == 0
    runtime.close()


@pytest.mark.parametrize("name", RENAMED)
def test_a_renamed_binding_is_noticed(tmp_path: Path, name: str) -> None:
    folder = engine_folder(tmp_path / "engines")
    use(folder, load(CATALOGUE, METHODS))
    with pytest.raises((AttributeError, TypeError, UsageError), match=r"no attribute|incompatible|LENGTH|ONLY"):
        use(folder, load(renamed(RENAMED[name]), METHODS))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b: b.KvCacheConfig(max_tokens=1.5), "incompatible"),
        (lambda b: b.Request([1], 4, True), "incompatible"),
        (lambda b: b.Request([1], max_tokens="4"), "incompatible"),
        (lambda b: b.ExecutorConfig(normalize_log_probs=0), "incompatible"),
        (lambda b: b.SamplingConfig(seed=-1), "incompatible"),
        (lambda b: b.Request([1], 4).streamin, "no attribute"),
        (lambda b: setattr(b.Request([1], 4), "max_tokens", 5), "no writable attribute"),
    ],
)
def test_the_stand_in_is_as_strict_as_the_bindings(make: Callable[[Any], Any], message: str) -> None:
    with pytest.raises((TypeError, AttributeError), match=message):
        make(MODULE)


# In processes of their own, as users start them

LIMIT = 60


def environment(tmp_path: Path, **options: Any) -> dict[str, str]:
    return install(tmp_path / "site", **options)


def run(folder: Path, env: dict[str, str], *arguments: str, ranks: int | None = None) -> Done:
    command = [sys.executable, "-m", "trtllm_pt", "run", str(folder), "3 11 4 3", "--max-tokens", "6", *arguments]
    launcher = [find_mpirun(MPI_OF_TENSORRT_LLM), "-n", str(ranks)] if ranks else []
    return subprocess.run(
        [*launcher, *command], env={**os.environ, **env}, capture_output=True, text=True, timeout=LIMIT, check=False
    )


@pytest.mark.parametrize("started_by", ["itself", pytest.param("mpirun", marks=pytest.mark.slow)])
def test_run_on_two_ranks(tmp_path: Path, started_by: str) -> None:
    folder = engine_folder(tmp_path / "engines", ranks=2)
    done = run(folder, environment(tmp_path), "--json", ranks=2 if started_by == "mpirun" else None)
    assert done.returncode == 0, done.stderr
    result = json.loads(
        done.stdout
    )  # and nothing else: the other rank is silent, TensorRT-LLM's greeting went elsewhere
    assert result["token_ids"] == list(FREE[:6])
    assert (result["finish_reason"], result["sync_points_seen"]) == ("length", None)


def test_run_streams_and_says_what_the_schedule_says(tmp_path: Path) -> None:
    done = run(engine_folder(tmp_path / "engines"), environment(tmp_path))
    assert done.stdout == "3 11 4 3 " + " ".join(map(str, FREE[:6])) + "\n"
    assert re.search(r"6 tokens \(length\) · .* · syncs per forward: \d+ by the schedule, against 8", done.stderr)


@pytest.mark.parametrize(
    ("gpus", "ranks", "message"),
    [
        (1, None, rf"this machine has 1 NVIDIA GPUs for 2 ranks of the engine: {INSTALL}"),
        (8, 3, r"2 ranks are needed, but 3 were started: use `mpirun -n 2`"),
    ],
)
def test_ranks_that_do_not_fit(tmp_path: Path, gpus: int, ranks: int | None, message: str) -> None:
    done = run(engine_folder(tmp_path / "engines", ranks=2), environment(tmp_path, gpus=gpus), ranks=ranks)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(rf"^Error( on rank \d+)?: {message}$", done.stderr, re.MULTILINE), done.stderr  # whoever is first
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("shown", "enough"),
    [(["0,1", "0,1"], True), (["0", "1"], True), (["0", "0"], False), ([None, None], False)],
)
def test_a_rank_may_be_shown_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, shown: list[str | None], enough: bool
) -> None:
    counts = [len(names.split(",")) if names else 1 for names in shown]

    class Ranks(World):
        def gather_all(self, value: Any) -> list[Any]:
            return [(value[0], names, count) for names, count in zip(shown, counts, strict=True)]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: counts[0])
    if enough:
        check_gpus(Ranks(None))
    else:
        with pytest.raises(UsageError, match="1 NVIDIA GPUs for 2 ranks"):
            check_gpus(Ranks(None))


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        (
            {"version": "1.2.0"},
            {},
            rf"TensorRT-LLM 1\.2\.0.* 1\.2\.1 .*`trtllm-pt build`.*{INSTALL}",
        ),
        ({}, {}, rf"this machine has 0 NVIDIA GPUs for a rank of the engine: {INSTALL}"),
        ({}, {"threads": 2}, r"threads \(2\) applies only to the embedded engine"),
    ],
    ids=["another version", "no GPU", "threads"],
)
def test_an_engine_that_cannot_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: dict[str, str], options: dict[str, int], message: str
) -> None:
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UsageError, match=message):
        LLM(engine_folder(tmp_path / "engines", **engine), **options)


def test_a_rank_that_cannot_load_its_engine(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path / "engines", ranks=2)
    (folder / "rank1.engine").write_bytes(b"broken")
    done = run(folder, environment(tmp_path))
    assert done.returncode == 1
    assert re.fullmatch(
        r"Error: TensorRT-LLM could not load \S+: \[TensorRT-LLM\]\[ERROR\] Failed to deserialize cuda engine\.\n",
        done.stderr,
    )


def test_llm_on_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several prompts, a stream left early, an error: LLM does not care which engine it was given."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))  # here only its version is looked at
    folder = engine_folder(tmp_path / "engines", ranks=2)
    with LLM(folder) as llm:
        pids = llm._runtime.pids  # type: ignore[attr-defined]
        results = llm.generate([PROMPT, (12,), (13, 14)], SamplingParams(max_tokens=12))
        assert results[0].token_ids == FREE
        assert [r.token_ids for r in results[1:]] == [expected(request(0, p))[0] for p in ((12,), (13, 14))]
        stream = llm.stream(PROMPT, SamplingParams(max_tokens=50))
        stream.close()
        *_, last = llm.stream(PROMPT, SamplingParams(max_tokens=5))
        assert not isinstance(last, str) and last.token_ids == FREE[:5]
        with pytest.raises(RunError, match="out of luck"):
            llm.generate([(FAILS, 1)])
        with pytest.raises(RunError, match="token 51 is beyond the vocabulary"):
            llm.generate([(NOT_A_NUMBER, 1)])
        with pytest.raises(UsageError, match=r"top_k \(2000\).*, on a TensorRT engine"):
            llm.generate([PROMPT], SamplingParams(top_k=2000))
        assert llm.generate([PROMPT], SamplingParams(max_tokens=12))[0].token_ids == FREE
    assert len(pids) == 2
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "ranks that are left over"
        time.sleep(0.05)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_llm") is not None, reason="TensorRT-LLM is installed here")
def test_without_tensorrt_llm(tmp_path: Path) -> None:
    """On this machine, without a stand-in."""
    folder = engine_folder(tmp_path / "engines")
    done = run_in(tmp_path, "run", "engines", "1 2 3")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"Error: engines holds TensorRT engines: {INSTALL}\n", done.stderr)
    (folder / "rank0.engine").unlink()
    done = run_in(tmp_path, "run", "engines", "1 2 3")
    assert done.returncode == 2
    assert re.fullmatch(r"Error: engines is incomplete: .*\n", done.stderr)
