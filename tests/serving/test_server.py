"""The embedded engine behind a real tritonserver, through NVIDIA's clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import shutil
import signal
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.configs import PRETRAINED
from tests.serving.client import (
    ACTIVE,
    END,
    Stream,
    ask,
    ended_early,
    events,
    figures,
    ids_of,
    inputs_of,
    post,
    scalars,
    tensor,
    text_of,
    tokens,
    until,
)
from tests.serving.conftest import QUEUE, Served, needs_triton, running
from trtllm_pt import build, convert
from trtllm_pt.backends import BuildOptions
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.runtime.llm import LLM, RunResult
from trtllm_pt.text.tokenizer import load_tokenizer

pytestmark = needs_triton

PROMPTS = ["def binary_search(", "import os\n", "class Queue:\n    def ", "# Grüße, 你好 🚀\n", "x" * 300]
LENGTH = 48
LONG = 12288  # tokens: 48 chunks of a prompt
SAMPLED = SamplingParams(max_tokens=32, temperature=0.75, top_k=40, top_p=0.875, seed=7, repetition_penalty=1.25)


@pytest.fixture(scope="module")
def llm(engines: Path) -> LLM:
    """The same engine without a server."""
    running = LLM(engines)
    yield running
    running.close()


@pytest.fixture(scope="module")
def alone(llm: LLM) -> list[RunResult]:
    """What each prompt gets alone, greedily."""
    return [llm.generate([prompt], SamplingParams(max_tokens=LENGTH))[0] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def ids(llm: LLM) -> list[list[int]]:
    return [list(llm.encode(prompt)) for prompt in PROMPTS]


def test_greedy_tokens_are_the_runtimes_whatever_else_runs(
    served: Served, ids: list[list[int]], alone: list[RunResult]
) -> None:
    def one(number: int) -> None:
        which = number % len(PROMPTS)
        answers = ask(served, "tensorrt_llm", tokens(ids[which], LENGTH, end_id=0, streaming=number % 2 == 0))
        assert tuple(ids_of(answers)) == alone[which].token_ids
        assert number % 2 == 0 or len(answers) == 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(24)))


def test_nvidias_async_client_streams_many_at_once(
    served: Served, ids: list[list[int]], alone: list[RunResult]
) -> None:
    import tritonclient.grpc.aio as aio

    async def one(client: aio.InferenceServerClient, which: int) -> tuple[int, ...]:
        async def requests() -> AsyncIterator[dict[str, Any]]:
            given = tokens(ids[which], LENGTH, end_id=0, streaming=True)
            yield {"model_name": "tensorrt_llm", "inputs": inputs_of(given)}

        got: list[int] = []
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            got += result.as_numpy("output_ids").ravel().tolist()
        return tuple(got)

    async def all_of_them() -> list[tuple[int, ...]]:
        async with aio.InferenceServerClient(f"127.0.0.1:{served.grpc}") as client:
            return await asyncio.gather(*(one(client, number % len(PROMPTS)) for number in range(8)))

    found = asyncio.run(all_of_them())
    assert found == [alone[number % len(PROMPTS)].token_ids for number in range(8)]


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_texts_over_http_and_grpc(served: Served, alone: list[RunResult], model: str) -> None:
    for prompt, wanted in zip(PROMPTS, alone, strict=True):
        status, answer = post(served, model, {"text_input": prompt, "max_tokens": LENGTH})
        assert (status, answer["text_output"]) == (200, wanted.text)
        [one] = ask(served, model, scalars(text_input=prompt.encode(), max_tokens=LENGTH))
        assert text_of([one]) == wanted.text


def test_streamed_text_joined_is_the_unstreamed(served: Served, llm: LLM) -> None:
    """With samples, whose characters fall apart into several tokens."""
    sampling = {"top_k": 0, "top_p": 1.0, "temperature": 1.5, "end_id": END, "max_tokens": 64}
    broken = 0
    for seed in range(6):
        body = {"text_input": PROMPTS[3], "seed": seed, **sampling}
        _, whole = post(served, "tensorrt_llm_bls", body)
        pieces = [event["text_output"] for event in events(served, "tensorrt_llm_bls", {**body, "stream": True})]
        assert "".join(pieces) == whole["text_output"] and len(pieces) >= 64
        broken += "" in pieces
        [ensemble] = ask(served, "ensemble", scalars(**{**body, "text_input": body["text_input"].encode()}))
        assert text_of([ensemble]) == whole["text_output"]
    assert broken, "no character came in parts: the test shows nothing"


def test_the_ensemble_streams_token_by_token(served: Served, alone: list[RunResult]) -> None:
    pieces = events(served, "ensemble", {"text_input": PROMPTS[0], "max_tokens": LENGTH, "stream": True})
    assert "".join(piece["text_output"] for piece in pieces) == alone[0].text


def test_samples_are_the_runtimes(served: Served, llm: LLM, ids: list[list[int]]) -> None:
    [wanted] = llm.generate([PROMPTS[0]], SAMPLED)
    given = {"temperature": 0.75, "runtime_top_k": 40, "runtime_top_p": 0.875, "seed": 7, "repetition_penalty": 1.25}
    assert tuple(ids_of(ask(served, "tensorrt_llm", tokens(ids[0], 32, end_id=0, **given)))) == wanted.token_ids
    given = {"temperature": 0.75, "top_k": 40, "top_p": 0.875, "seed": 7, "repetition_penalty": 1.25}
    _, answer = post(served, "ensemble", {"text_input": PROMPTS[0], "max_tokens": 32, **given})
    assert answer["text_output"] == wanted.text


def test_penalties_and_min_tokens_are_the_runtimes(served: Served, llm: LLM, ids: list[list[int]]) -> None:
    wanted = SamplingParams(max_tokens=32, presence_penalty=0.5, frequency_penalty=0.25, min_tokens=30)
    given = {"presence_penalty": 0.5, "frequency_penalty": 0.25, "min_tokens": 30}
    [result] = llm.generate([PROMPTS[1]], wanted)
    assert tuple(ids_of(ask(served, "tensorrt_llm", tokens(ids[1], 32, end_id=0, **given)))) == result.token_ids


def test_log_probs_and_counts(served: Served, llm: LLM, ids: list[list[int]]) -> None:
    [wanted] = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=8, log_probs=True))
    flags = {"return_log_probs": True, "return_num_input_tokens": True, "return_num_output_tokens": True}
    [whole] = ask(served, "tensorrt_llm", tokens(ids[0], 8, end_id=0, **flags))
    np.testing.assert_array_equal(whole["output_log_probs"][0, 0], np.array(wanted.log_probs, np.float32))
    assert whole["cum_log_probs"].tolist() == [[np.float32(sum(wanted.log_probs))]]
    assert whole["num_input_tokens"].tolist() == [[len(ids[0])]]
    assert whole["num_output_tokens"].tolist() == [[8]]
    parts = ask(served, "tensorrt_llm", tokens(ids[0], 8, end_id=0, streaming=True, **flags))
    np.testing.assert_array_equal(
        np.concatenate([part["output_log_probs"][0, 0] for part in parts]), whole["output_log_probs"][0, 0]
    )
    assert parts[-1]["cum_log_probs"] == whole["cum_log_probs"]


def test_the_prompt_where_asked_for(served: Served, ids: list[list[int]], alone: list[RunResult]) -> None:
    wanted = [*ids[0], *alone[0].token_ids]
    assert (
        ids_of(ask(served, "tensorrt_llm", tokens(ids[0], LENGTH, end_id=0, exclude_input_in_output=False))) == wanted
    )
    for model in ("ensemble", "tensorrt_llm_bls"):
        body = {"text_input": PROMPTS[0], "max_tokens": LENGTH, "exclude_input_in_output": False}
        assert post(served, model, body)[1]["text_output"] == PROMPTS[0] + alone[0].text


def test_sequences_and_batches_are_numbered(served: Served, llm: LLM, ids: list[list[int]]) -> None:
    sampling = {"runtime_top_k": 50, "temperature": 1.0, "num_return_sequences": 3, "seed": 5}
    answers = ask(served, "tensorrt_llm", tokens(ids[0], 12, **sampling))
    assert sorted(int(answer["sequence_index"][0, 0]) for answer in answers) == [0, 1, 2]
    for answer in answers:
        seed = 5 + int(answer["sequence_index"][0, 0])
        one = SamplingParams(max_tokens=12, temperature=1.0, top_k=50, seed=seed, end_id=-1)
        assert tuple(ids_of([answer])) == llm.generate([PROMPTS[0]], one)[0].token_ids
    longest = max(map(len, ids[:2]))
    batch = {
        "input_ids": np.array([one + [0] * (longest - len(one)) for one in ids[:2]], np.int32),
        "input_lengths": tensor([[len(one)] for one in ids[:2]], np.int32, rows=2),
        "request_output_len": tensor([[5], [9]], np.int32, rows=2),
    }
    for answer in ask(served, "tensorrt_llm", batch):
        row = int(answer["batch_index"][0, 0])
        one = SamplingParams(max_tokens=(5, 9)[row], end_id=-1)
        assert tuple(ids_of([answer])) == llm.generate([PROMPTS[row]], one)[0].token_ids


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_the_text_models_pass_everything_on(served: Served, llm: LLM, ids: list[list[int]], model: str) -> None:
    sampling = {"top_k": 50, "temperature": 1.0, "seed": 5, "num_return_sequences": 2, "end_id": END}
    flags = {"return_log_probs": True, "return_num_input_tokens": True, "return_num_output_tokens": True}
    given = scalars(text_input=PROMPTS[0].encode(), max_tokens=12, **sampling, **flags)
    answers = {int(answer["sequence_index"][0, 0]): answer for answer in ask(served, model, given)}
    assert sorted(answers) == [0, 1]
    for number, answer in answers.items():
        one = SamplingParams(max_tokens=12, temperature=1.0, top_k=50, seed=5 + number, end_id=-1, log_probs=True)
        [wanted] = llm.generate([PROMPTS[0]], one)
        assert text_of([answer]) == wanted.text
        np.testing.assert_array_equal(answer["output_log_probs"][0, 0], np.array(wanted.log_probs, np.float32))
        assert (answer["num_input_tokens"], answer["num_output_tokens"]) == ([[len(ids[0])]], [[12]])
    [free] = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=LENGTH))
    tokenizer = load_tokenizer(PRETRAINED)
    assert tokenizer is not None
    words = {token: tokenizer.decode([token]) for token in free.token_ids[2:]}
    token, word = next((token, word) for token, word in words.items() if tokenizer.encode(word).ids == [token])
    stopped = {"text_input": PROMPTS[0], "max_tokens": LENGTH, "stop_words": [word]}
    assert post(served, model, stopped)[1]["text_output"].endswith(word)
    without = {"text_input": PROMPTS[0], "max_tokens": LENGTH, "bad_words": [word]}
    [wanted] = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=LENGTH, bad_words=((token,),)))
    assert post(served, model, without)[1]["text_output"] == wanted.text != free.text


def test_stop_words_end_a_text_and_stay_in_it(served: Served, llm: LLM, ids: list[list[int]]) -> None:
    [free] = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=LENGTH))
    word = free.text[5:9]  # wherever the tokens put it
    wanted = free.text[: free.text.index(word) + len(word)]
    body = {"text_input": PROMPTS[0], "max_tokens": LENGTH, "stop_words": ["never", word]}
    assert post(served, "tensorrt_llm_bls", body)[1]["text_output"] == wanted
    pieces = events(served, "tensorrt_llm_bls", {**body, "stream": True})
    assert "".join(piece["text_output"] for piece in pieces) == wanted
    until(lambda: not figures(served)[ACTIVE])
    first, second = free.token_ids[3:5]
    end = next(n for n in range(len(free.token_ids)) if free.token_ids[n : n + 2] == (first, second)) + 2
    words = np.array([[[first, second], [2, -1]]], np.int32)
    found = ask(served, "tensorrt_llm", {**tokens(ids[0], LENGTH, end_id=0), "stop_words_list": words})
    assert tuple(ids_of(found)) == free.token_ids[:end]


def test_bad_words_never_come(served: Served, llm: LLM, ids: list[list[int]]) -> None:
    [free] = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=8))
    words = np.array([[[free.token_ids[0]], [1]]], np.int32)
    found = ids_of(ask(served, "tensorrt_llm", {**tokens(ids[0], 8, end_id=0), "bad_words_list": words}))
    [wanted] = llm.generate([PROMPTS[0]], SamplingParams(max_tokens=8, bad_words=((free.token_ids[0],),)))
    assert tuple(found) == wanted.token_ids and free.token_ids[0] not in found


def test_a_short_request_overtakes_a_long_one(served: Served, ids: list[list[int]]) -> None:
    long = Stream(served, "tensorrt_llm", tokens(ids[0], 900, end_id=END, streaming=True))
    next(iter(long))
    assert len(ids_of(ask(served, "tensorrt_llm", tokens(ids[1], 4, end_id=END)))) == 4
    assert figures(served)[ACTIVE] >= 1
    long.close()
    until(lambda: not figures(served)[ACTIVE])


@pytest.mark.parametrize("model", ["tensorrt_llm", "tensorrt_llm_bls"])
def test_a_closed_stream_frees_its_slot(served: Served, ids: list[list[int]], model: str) -> None:
    wanted = tokens(ids[0], 1000, end_id=END, streaming=True)
    if model == "tensorrt_llm_bls":
        wanted = scalars(text_input=b"def f(", max_tokens=1000, end_id=END, stream=True)
    with ended_early(served, 1000):
        stream = Stream(served, model, wanted)
        answers = iter(stream)
        for _ in range(3):
            next(answers)
        stream.close()


def test_stop_ends_the_request_of_that_id(served: Served, ids: list[list[int]]) -> None:
    stream = Stream(served, "tensorrt_llm", tokens(ids[0], 900, end_id=END, streaming=True), name="mine")
    answers = iter(stream)
    first = next(answers)
    assert ask(served, "tensorrt_llm", tokens([1], 1, stop=True), name="mine") == []
    rest = list(answers)
    assert 0 < len(ids_of([first, *rest])) < 900
    assert ask(served, "tensorrt_llm", tokens([1], 1, stop=True), name="gone") == []


@pytest.mark.parametrize("model", ["tensorrt_llm", "ensemble", "tensorrt_llm_bls"])
def test_a_timeout_ends_a_request(served: Served, ids: list[list[int]], model: str) -> None:
    wanted = tokens(ids[0], 900, end_id=END)
    if model != "tensorrt_llm":
        wanted = scalars(text_input=b"def f(", max_tokens=900, end_id=END)
    with pytest.raises(Exception, match=r"the request timed out after \d+ tokens"):
        ask(served, model, wanted, timeout=200_000)
    until(lambda: not figures(served)[ACTIVE])


@contextlib.contextmanager
def full(served: Served) -> Iterator[str]:
    """As many outputs as may run and wait, at once; what a further request hears."""
    most = 4 + QUEUE
    endless = tokens([5], 1020, end_id=END, num_return_sequences=most)
    stream = Stream(served, "tensorrt_llm", endless, name="full")
    until(lambda: figures(served)[ACTIVE] == most)
    yield f"the queue is full: {most} outputs are waiting or running"
    ask(served, "tensorrt_llm", tokens([1], 1, stop=True), name="full")
    assert len(list(stream)) == most
    until(lambda: not figures(served)[ACTIVE])


def test_a_full_queue_says_unavailable(served: Served, proxy: Served, ids: list[list[int]]) -> None:
    """OpenAI's endpoints: test_openai.py. `generate` of Triton itself can say no more than 400 (http_proxy.py)."""
    with full(served) as words:
        with pytest.raises(Exception, match=words):
            ask(served, "tensorrt_llm", tokens(ids[0], 4))
        for model in ("ensemble", "tensorrt_llm_bls"):
            for verb in ("generate", "generate_stream"):
                body = {"text_input": "def", "max_tokens": 4}
                status, answer = post(proxy, model, body, verb)
                assert status == 503 and words in answer["error"], answer
                assert post(served, model, body, verb)[1] == answer
    assert len(ids_of(ask(served, "tensorrt_llm", tokens(ids[0], 4, end_id=END)))) == 4


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server for long prompts, in whose queue 100 may wait. 4 slots, and a step could take any prompt whole."""
    root = tmp_path_factory.mktemp("roomy")
    model = shutil.copytree(PRETRAINED, root / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": LONG}))
    convert(model, root / "checkpoint", ranks=2)
    options = BuildOptions(max_batch_size=4, max_num_tokens=LONG)
    build(root / "checkpoint", root / "engines", engine="embedded", options=options)
    with running(root / "engines", root, queue=100) as (served, _):
        yield served


@pytest.mark.slow  # its engine has a graph of its own
def test_requests_that_wait_do_not_hold_up_streams_that_run(roomy: Served) -> None:
    """tensorrt_llm_bls waits for an engine's first answer on a thread of Triton's: there must be more of them than
    requests that wait."""
    wanted = scalars(text_input=b"def f(", max_tokens=LONG, end_id=END, stream=True)
    with contextlib.ExitStack() as streams:

        def start() -> Stream:
            stream = Stream(roomy, "tensorrt_llm_bls", wanted)
            streams.callback(stream.close)
            return stream

        first = start()
        answers = iter(first)
        next(answers)
        for _ in range(50):
            start()
        until(lambda: figures(roomy)[ACTIVE] == 51)
        before = figures(roomy)["nv_trt_llm_general_metrics/iteration_counter"]
        for _ in range(first.unread + 150):
            next(answers)
        until(lambda: figures(roomy)["nv_trt_llm_general_metrics/iteration_counter"] > before)
        assert figures(roomy)["nv_trt_llm_request_metrics/waiting"] == 47, "its answers came when others had ended"
    until(lambda: not figures(roomy)[ACTIVE])


@pytest.mark.slow
def test_a_long_prompt_does_not_stall_streams_that_run(roomy: Served) -> None:
    """While its chunks are computed, each of the others gets a token with every chunk: here more than 40."""
    counts = [0, 0, 0]
    wanted = scalars(text_input=b"def f(", max_tokens=LONG, end_id=END, stream=True)
    draw = random.Random(0)
    prompt = [draw.randrange(1, 4096) for _ in range(LONG - 1)]

    def read(number: int) -> None:
        with contextlib.closing(Stream(roomy, "tensorrt_llm_bls", wanted)) as stream:
            for _ in stream:
                counts[number] += 1
                if enough.is_set():
                    return

    enough = threading.Event()
    with ThreadPoolExecutor() as pool:
        try:
            readers = [pool.submit(read, number) for number in range(len(counts))]
            until(lambda: min(counts) > 3)
            before = counts.copy()
            long = Stream(roomy, "tensorrt_llm", tokens(prompt, 1, end_id=END))
            until(lambda: figures(roomy)["nv_trt_llm_inflight_batcher_metrics/total_context_tokens"] == len(prompt))
            assert figures(roomy)["nv_trt_llm_request_metrics/context"] == 1
            [answer] = long
            meanwhile = [after - earlier for after, earlier in zip(counts, before, strict=True)]
        finally:
            enough.set()
    for reader in readers:
        reader.result()
    assert ids_of([answer]) and min(meanwhile) > 20, meanwhile
    until(lambda: not figures(roomy)[ACTIVE])


@pytest.mark.slow
def test_clients_that_come_and_go_leave_the_others_tokens_alone(
    engines: Path, tmp_path: Path, ids: list[list[int]], alone: list[RunResult]
) -> None:
    """A third of them closes its stream somewhere, some just as it ends. On a server of its own, for Triton 2.51 keeps
    such a request for ever, and does not unload its model."""

    def one(number: int) -> None:
        draw = random.Random(number)
        for _ in range(12):
            which, most = draw.randrange(len(PROMPTS)), draw.choice((2, 8, LENGTH))
            stream = Stream(served, "tensorrt_llm", tokens(ids[which], most, end_id=0, streaming=True))
            closes = draw.randrange(most) if draw.random() < 0.34 else None
            got: list[int] = []
            for answer in stream:
                got += ids_of([answer])
                if len(got) - 1 == closes:
                    stream.close()
                    break
            else:
                assert tuple(got) == alone[which].token_ids[:most]

    with (
        running(engines, tmp_path) as (served, server),
        ThreadPoolExecutor(6) as pool,  # half of what may wait or run: closed ones count for a moment more
    ):
        list(pool.map(one, range(12)))
        until(lambda: not figures(served)[ACTIVE] and not figures(served)["nv_trt_llm_kv_cache_block_metrics/used"])
        assert server.close() in (0, -signal.SIGKILL)


def test_http_clients_that_come_and_go(served: Served, proxy: Served) -> None:
    """Here Triton forgets them: `served` ends with status 0."""

    def one(number: int) -> None:
        draw = random.Random(number)
        for _ in range(6):
            url = f"http://127.0.0.1:{draw.choice((served, proxy)).http}/v2/models/tensorrt_llm_bls/generate_stream"
            most = draw.choice((2, 8, LENGTH))
            body = {"text_input": PROMPTS[0], "max_tokens": most, "end_id": END, "stream": True}
            with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=120) as answer:
                for _ in range(draw.randrange(2 * most)):
                    answer.readline()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(12)))
    until(lambda: not figures(served)[ACTIVE] and not figures(served)["nv_trt_llm_kv_cache_block_metrics/used"])


METRICS = {
    "nv_trt_llm_request_metrics": "active max scheduled context waiting",
    "nv_trt_llm_runtime_memory_metrics": "cpu gpu pinned",
    "nv_trt_llm_kv_cache_block_metrics": "max free used tokens_per reused fraction",
    "nv_trt_llm_inflight_batcher_metrics": "total_context_tokens generation_requests micro_batch_id paused_requests",
    "trtllm_pt_speculation_metrics": "drafted accepted",
    "nv_trt_llm_general_metrics": "timestamp iteration_counter",
}
SAME = {  # what vLLM calls it
    "vllm:num_requests_waiting": "nv_trt_llm_request_metrics/waiting",
    "vllm:num_requests_running": "nv_trt_llm_request_metrics/scheduled",
    "vllm:kv_cache_usage_perc": "nv_trt_llm_kv_cache_block_metrics/fraction",
}
TTFT = "vllm:time_to_first_token_seconds"


def test_the_metrics_page_has_the_names_and_kinds_of_tensorrt_llm_and_vllm(served: Served) -> None:
    ask(served, "tensorrt_llm", tokens([5], 1, end_id=END))
    until(lambda: figures(served)["nv_trt_llm_general_metrics/iteration_counter"] and not figures(served)[ACTIVE])
    with urllib.request.urlopen(f"http://127.0.0.1:{served.metrics}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    kinds = dict(re.findall(r"^# TYPE ((?:nv_(?:trt_)?llm_|trtllm_pt_|vllm:)\w+) (\w+)$", page, re.MULTILINE))
    histograms = dict.fromkeys(("nv_llm_input_token_len", "nv_llm_output_token_len", TTFT), "histogram")
    assert kinds == {**dict.fromkeys([*METRICS, *SAME], "gauge"), **histograms}
    found = figures(served)
    assert {name for name in found if "/" in name} == {f"{one}/{k}" for one, ks in METRICS.items() for k in ks.split()}
    for name, value in {
        "nv_trt_llm_request_metrics/max": 4,
        "nv_trt_llm_request_metrics/waiting": 0,
        "nv_trt_llm_request_metrics/scheduled": 0,
        "nv_trt_llm_kv_cache_block_metrics/tokens_per": 16,
        "nv_trt_llm_kv_cache_block_metrics/used": 0,
        "nv_trt_llm_request_metrics/context": 0,
        "nv_trt_llm_inflight_batcher_metrics/total_context_tokens": 0,
        "nv_trt_llm_inflight_batcher_metrics/generation_requests": 0,
        "nv_trt_llm_inflight_batcher_metrics/paused_requests": 0,
    }.items():
        assert found[name] == value, name
    assert found["nv_trt_llm_kv_cache_block_metrics/max"] == found["nv_trt_llm_kv_cache_block_metrics/free"]
    assert found["nv_trt_llm_runtime_memory_metrics/cpu"] > 1e6


def test_the_metrics_page_counts(served: Served, ids: list[list[int]]) -> None:
    before, steps = figures(served), "nv_trt_llm_general_metrics/iteration_counter"
    for _ in range(2):
        ask(served, "tensorrt_llm", tokens(ids[-1], 40, end_id=END))
    until(lambda: figures(served)[steps] >= before[steps] + 80)  # the gauges follow the answer
    until(lambda: not figures(served)[ACTIVE])
    after = figures(served)

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown("nv_trt_llm_kv_cache_block_metrics/reused") >= (len(ids[-1]) - 1) // 16
    assert grown("nv_llm_input_token_len_count") == grown("nv_llm_output_token_len_count") == 2
    assert grown("nv_llm_input_token_len_sum") == 2 * len(ids[-1])
    assert grown("nv_llm_output_token_len_sum") == 80
    assert grown(f"{TTFT}_count") == 2 and 0 < grown(f"{TTFT}_sum") < 20
    stream = Stream(served, "tensorrt_llm", tokens(ids[0], 900, end_id=END, streaming=True))
    next(iter(stream))
    until(lambda: figures(served)["nv_trt_llm_inflight_batcher_metrics/generation_requests"] == 1)
    running = figures(served)
    assert running["nv_trt_llm_kv_cache_block_metrics/used"] > 0
    assert [running[name] for name in SAME] == [running[name] for name in SAME.values()]
    assert running["vllm:num_requests_running"] == 1 and running["vllm:kv_cache_usage_perc"] > 0
    stream.close()
    until(lambda: not figures(served)[ACTIVE])


def test_logits(served: Served, llm: LLM) -> None:
    """The names and shapes of TensorRT-LLM's backend; of the prompt in the first response of a stream."""
    prompt = [5, 6, 7]
    sampling = SamplingParams(max_tokens=3, end_id=-1, context_logits=True, generation_logits=True)
    [result] = llm.generate([prompt], sampling)
    vocab = llm.manifest.model.vocab_size
    rows = np.array([np.frombuffer(row, np.float32) for row in result.logits])
    context = np.array([*(np.frombuffer(score.logits, np.float32) for score in result.prompt_scores), rows[0]])
    given = tokens(prompt, 3, end_id=END, return_context_logits=True, return_generation_logits=True)
    [whole] = ask(served, "tensorrt_llm", given)
    assert (whole["context_logits"].shape, whole["generation_logits"].shape) == ((1, 3, vocab), (1, 1, 3, vocab))
    assert np.array_equal(whole["context_logits"][0], context)
    assert np.array_equal(whole["generation_logits"][0, 0], rows)
    assert "context_log_probs" not in whole and "output_log_probs" not in whole
    parts = ask(served, "tensorrt_llm", given | scalars(streaming=True))
    assert ["context_logits" in part for part in parts] == [True, *[False] * (len(parts) - 1)]
    assert np.array_equal(parts[0]["context_logits"][0], context)
    streamed = [row for part in parts for row in part["generation_logits"][0, 0]]
    assert np.array_equal(streamed, rows)
    too_many = tokens([5] * 1000, 23, end_id=END, return_context_logits=True)
    assert ask(served, "tensorrt_llm", too_many)[0]["context_logits"].shape == (1, 1000, vocab)
