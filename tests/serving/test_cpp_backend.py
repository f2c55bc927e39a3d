"""TensorRT engines in Triton: what NVIDIA's backend would ignore or misread is refused by name, on every way to it.

The backend is a stand-in (cpp_backend.py). Everything else is what `serve` starts.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from tests.backends.tensorrt_llm.executor.engine import toy_logits
from tests.backends.tensorrt_llm.executor.folders import MODEL, engine_folder
from tests.serving.client import Stream, events, post, tokens
from tests.serving.conftest import Served, needs_triton, running
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.batching.sampling import sample
from trtllm_pt.checkpoint.tokenizer_files import copy_tokenizer
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import Request, SamplingParams
from trtllm_pt.requests.sequence import Sequence
from trtllm_pt.text.tokenizer import load_tokenizer

pytestmark = needs_triton
PRETRAINED = Path(__file__).parents[2] / "pretrained" / "stdlib-pt"
WIDE = MODEL.replace(vocab_size=4096)
TEXT = "def main("
COUNT = 12


@dataclass(frozen=True)
class Ports:
    triton: Served  # Triton itself
    proxy: Served  # the HTTP port of `serve`
    openai: str
    engines: Path


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    from tests.serving import cpp_backend
    from trtllm_pt.serving.openai.app import OpenAIServer
    from trtllm_pt.serving.triton import server
    from trtllm_pt.serving.triton.http_proxy import HttpProxy

    root = tmp_path_factory.mktemp("tensorrt")
    folder = engine_folder(root / "engines", model=WIDE)
    copy_tokenizer(PRETRAINED, folder / "tokenizer")
    find = server.find_triton

    def with_stand_in(scratch: Path) -> Any:
        found = find(scratch)
        cpp_backend.install(scratch / "backends")
        return found

    with patch.object(server, "find_triton", with_stand_in), running(folder, root) as (served, _):
        http, openai = server.free_ports(2)
        proxy = HttpProxy(f"http://127.0.0.1:{served.http}", read_engine(folder).backend.triton_omits)
        with (
            proxy.listening("127.0.0.1", http),
            OpenAIServer(folder, "demo", f"127.0.0.1:{served.grpc}").listening("127.0.0.1", openai),
        ):
            yield Ports(served, Served(folder, http, served.grpc, served.metrics), f"http://127.0.0.1:{openai}", folder)


def wanted(ports: Ports, **sampling: Any) -> tuple[list[int], list[float]]:
    """The tokens and log-probs that SamplingParams means."""
    tokenizer = load_tokenizer(ports.engines / "tokenizer", required=True)
    p = SamplingParams(**{"max_tokens": COUNT, "end_id": -1, **sampling})
    request = Request(id=0, token_ids=tuple(tokenizer.encode(TEXT).ids), sampling=p)
    sequence, log_probs = Sequence.start(request, len(request.token_ids) + p.max_tokens, -1), []
    while True:
        row = toy_logits(sequence.tokens, WIDE.vocab_size)
        [token], _, _ = sample(row[None], [sequence])
        exact = row.astype(np.float64)
        log_probs.append(float(exact[token] - np.log(np.exp(exact).sum())))
        if sequence.take(token):
            return list(sequence.output), log_probs


def text_of(ports: Ports, ids: list[int]) -> str:
    """The text after the prompt."""
    tokenizer = load_tokenizer(ports.engines / "tokenizer", required=True)
    return str(tokenizer.decode([*tokenizer.encode(TEXT).ids, *ids])[len(TEXT) :])


def complete(ports: Ports, **fields: Any) -> tuple[int, Any]:
    body = {"model": "demo", "prompt": TEXT, "max_tokens": COUNT, "temperature": 0, "ignore_eos": True, **fields}
    request = urllib.request.Request(f"{ports.openai}/v1/completions", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def ask(served: Served, model: str, **fields: Any) -> tuple[int, Any]:
    return post(served, model, {"text_input": TEXT, "max_tokens": COUNT, "end_id": -1, **fields})


DRAWN = {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "seed": 7}
HONOURED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": DRAWN,
    "repetition": {"repetition_penalty": 1.8},
    "repetition of draws": {**DRAWN, "repetition_penalty": 1.8},
}


@pytest.mark.parametrize("name", HONOURED)
def test_a_field_means_what_it_means_in_sampling_params(ports: Ports, name: str) -> None:
    fields = HONOURED[name]
    text = text_of(ports, wanted(ports, **fields)[0])
    assert ask(ports.triton, "tensorrt_llm_bls", **fields)[1]["text_output"] == text
    assert complete(ports, **fields)[1]["choices"][0]["text"] == text


NOTHING = {"num_return_sequences": 1, "length_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@pytest.mark.parametrize("name", NOTHING)
def test_a_value_that_asks_for_nothing_does_not_reach_the_backend(ports: Ports, name: str) -> None:
    """num_return_sequences 1 would forbid all tokens that occurred before, and length_penalty 1 change penalties."""
    penalty = {"repetition_penalty": 0.2}  # that the same tokens come again
    text = text_of(ports, wanted(ports, **penalty)[0])
    status, answer = ask(ports.triton, "tensorrt_llm_bls", **penalty, **{name: NOTHING[name]})
    assert (status, answer.get("text_output")) == (200, text)


def test_openais_n_is_so_many_requests(ports: Ports) -> None:
    _, answer = complete(ports, **DRAWN, n=3)
    texts = [text_of(ports, wanted(ports, **DRAWN | {"seed": 7 + i})[0]) for i in range(3)]
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert len(set(texts)) == 3


REFUSED: dict[str, Any] = {
    "num_return_sequences": 2,
    "length_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "lora_task_id": 3,
    "prompt_vocab_size": 4,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_backend_cannot_do_is_refused_by_name(ports: Ports, name: str) -> None:
    value, own = REFUSED[name], {"length_penalty": "len_penalty"}.get(name, name)
    status, answer = ask(ports.triton, "tensorrt_llm_bls", **{name: value})
    assert status == 400 and f"{own} " in answer["error"] and "a TensorRT engine" in answer["error"]
    for served in (ports.triton, ports.proxy):
        status, answer = ask(served, "ensemble", **{name: value})
        assert status == 400 and f"{name} is not supported" in answer["error"]
    direct = {"input_ids": [5, 6, 7], "input_lengths": 3, "request_output_len": 4, own: value}
    assert post(ports.proxy, "tensorrt_llm", direct) == (400, {"error": f"{own} is not supported by this engine"})


def test_over_grpc_triton_itself_names_an_input_that_the_model_does_not_have(ports: Ports) -> None:
    with pytest.raises(Exception, match="unexpected inference input 'num_return_sequences' for model 'tensorrt_llm'"):
        list(Stream(ports.triton, "tensorrt_llm", tokens([5, 6, 7], 4, num_return_sequences=1)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("presence_penalty", 0.5, r"presence_penalty (0.5) must be 0.0 with a TensorRT engine in Triton"),
        ("frequency_penalty", 0.5, r"frequency_penalty (0.5) must be 0.0 with a TensorRT engine in Triton"),
        ("min_p", 0.25, r"min_p (0.25) must be 0.0 with a TensorRT engine in Triton"),
        ("top_k", 1025, r"top_k (1025) must be at most 1024, on a TensorRT engine"),
        ("min_tokens", 1, r"min_tokens (1) must be 0 or at least 2, on a TensorRT engine"),
    ],
)
def test_openai_s_endpoints_refuse_what_the_backend_cannot_do(
    ports: Ports, field: str, value: Any, message: str
) -> None:
    status, answer = complete(ports, **{"temperature": 1.0, field: value})
    assert (status, answer["error"]["message"]) == (400, message)


def test_bls_refuses_what_the_executor_cannot_do(ports: Ports) -> None:
    for fields, message in (({"top_k": 1025}, r"top_k (1025) must be at most 1024"), ({"beam_width": 2}, "beam_width")):
        status, answer = ask(ports.triton, "tensorrt_llm_bls", **fields)
        assert status == 400 and message in answer["error"], answer


def test_a_stop_word_that_the_prompt_begins(ports: Ports) -> None:
    """The backend would stop at once, as it looks in the prompt, too."""
    ids, _ = wanted(ports)
    tokenizer = load_tokenizer(ports.engines / "tokenizer", required=True)
    first = text_of(ports, ids[:1])
    word = TEXT[-1] + first
    if tokenizer.encode(word).ids[0] != tokenizer.encode(TEXT).ids[-1]:
        pytest.skip("the tokenizer joins what the test needs apart")
    assert ask(ports.triton, "tensorrt_llm_bls", stop_words=[word])[1]["text_output"] == text_of(ports, ids)


def test_log_probs_of_a_stream_are_those_of_its_new_tokens(ports: Ports) -> None:
    ids, log_probs = wanted(ports)
    body = {"text_input": TEXT, "max_tokens": COUNT, "end_id": -1, "stream": True, "return_log_probs": True}
    parts = [event["output_log_probs"] for event in events(ports.triton, "tensorrt_llm_bls", body)]
    flat = [each for part in parts for each in (part if isinstance(part, list) else [part])]
    assert len(parts) > 1 and flat == pytest.approx(log_probs, abs=1e-4)
    assert len(ids) == len(flat)


def test_a_field_that_no_input_has_is_refused_for_every_backend_in_cpp(ports: Ports) -> None:
    limits = read_engine(ports.engines).triton_limits
    with pytest.raises(UsageError, match=r"min_p \(0.5\) must be 0.0 with a TensorRT engine in Triton"):
        limits.check_sampling(SamplingParams(temperature=1.0, min_p=0.5))
    limits.check_sampling(SamplingParams(min_p=0.5))  # greedy: it has no effect
