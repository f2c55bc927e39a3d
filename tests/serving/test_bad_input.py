"""What is wrong with a request is named, by Triton's gRPC and HTTP ports and by `serve`'s HTTP port (OpenAI's port:
test_openai.py). And the server goes on serving."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.serving.client import TYPES, ask, events, inputs_of, post, scalars, tensor, tokens
from tests.serving.conftest import Served, needs_triton
from trtllm_pt.serving.triton.tensors import inputs

pytestmark = needs_triton

NAN, INFINITY = float("nan"), float("inf")
TEXT_MODELS = ("ensemble", "tensorrt_llm_bls")


@pytest.fixture(autouse=True)
def goes_on(served: Served) -> Iterator[None]:
    yield
    assert post(served, "tensorrt_llm_bls", {"text_input": "def", "max_tokens": 2})[0] == 200


def refused_over_grpc(served: Served, model: str, tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(Exception, match=message):
        ask(served, model, tensors)


def refused_over_http(served: Served, model: str, body: Any, message: str, status: int = 400) -> None:
    for verb in ("generate", "generate_stream"):
        found, answer = post(served, model, body, verb)
        assert found == status and re.search(message, answer["error"]), (found, answer)


def names(table: list[tuple[dict[str, Any], str]]) -> list[str]:
    return [f"{next(reversed(changes))}-{number}" for number, (changes, _) in enumerate(table)]


IDS: list[tuple[dict[str, Any], str]] = [
    ({"input_ids": [5, 99999]}, r"token_ids\[1\] \(99999\) must be a token id between 0 and 4095"),
    ({"input_ids": [-1, 5]}, r"token_ids\[0\] \(-1\) must be a token id"),
    ({"input_lengths": 9}, r"input_lengths \(9\) must be between 0 and the 2 tokens of input_ids"),
    ({"input_lengths": 0}, "token_ids is empty"),
    ({"input_lengths": -1}, r"input_lengths \(-1\) must be between"),
    ({"request_output_len": 0}, r"max_tokens \(0\) must be a whole number at least 1"),
    ({"request_output_len": -4}, r"max_tokens \(-4\)"),
    ({"runtime_top_k": 3, "temperature": NAN}, r"temperature \(nan\) must be a number at least 0"),
    ({"runtime_top_k": 3, "temperature": -1.0}, r"temperature \(-1.0\) must be a number at least 0"),
    ({"runtime_top_k": -1}, r"top_k \(-1\) must be a whole number at least 0"),
    ({"runtime_top_p": 1.5}, r"top_p \(1.5\) must be a number above 0 and at most 1"),
    ({"runtime_top_p": NAN}, r"top_p \(nan\) must be a number above 0 and at most 1"),
    ({"repetition_penalty": 0.0}, r"repetition_penalty \(0.0\) must be a number above 0"),
    ({"frequency_penalty": INFINITY}, r"frequency_penalty \(inf\) must be a finite number"),
    ({"min_tokens": 5}, r"min_tokens \(5\) must not exceed max_tokens \(4\)"),
    ({"num_return_sequences": 0}, r"num_return_sequences \(0\) must be between 1 and 1024"),
    ({"num_return_sequences": 2**31 - 1}, r"num_return_sequences \(2147483647\) (must be between 1 and 1024|needs)"),
    ({"beam_width": 2}, r"beam_width \(2\) is not supported by the embedded engine"),
    ({"return_perf_metrics": True}, r"return_perf_metrics \(True\) is not supported"),
    ({"draft_input_ids": [1, 2]}, "draft_input_ids is not supported by the embedded engine"),
    ({"input_ids": [1] * 1024, "input_lengths": 1024}, "the prompt has 1024 tokens and must be shorter than"),
    ({"end_id": 5000}, r"end_id \(5000\) must be a token id between 0 and 4095, or -1 for none"),
]


@pytest.mark.parametrize(("changes", "message"), IDS, ids=names(IDS))
def test_token_requests(served: Served, proxy: Served, changes: dict[str, Any], message: str) -> None:
    given = {"input_ids": [5, 6], "input_lengths": 2, "request_output_len": 4, **changes}
    lists = {name: tensor(value, np.int32) for name, value in given.items() if isinstance(value, list)}
    rest = scalars(**{name: value for name, value in given.items() if name not in lists})
    refused_over_grpc(served, "tensorrt_llm", {**lists, **rest}, message)
    is_json = all(np.isfinite(value).all() for value in given.values())
    for where in (served, proxy) if is_json else ():
        refused_over_http(where, "tensorrt_llm", given, message)


TEXTS: list[tuple[dict[str, Any], str]] = [
    ({"text_input": ""}, "text_input is empty: a request needs at least one token"),
    ({"text_input": "x " * 3000}, r"the prompt has \d+ tokens and must be shorter than max_seq_len \(1024\)"),
    ({"text_input": "x" * 5_000_000}, "text_input has 5000000 bytes, but must have at most "),
    ({"max_tokens": 0}, r"max_tokens \(0\) must be a whole number at least 1"),
    ({"max_tokens": -3}, r"max_tokens \(-3\) must be a whole number at least 1"),
    ({"top_k": 4, "temperature": -1.0}, r"temperature \(-1.0\) must be a number at least 0"),
    ({"top_k": 4, "temperature": NAN}, r"temperature \(nan\) must be a number at least 0"),
    ({"top_p": -0.5}, r"top_p \(-0.5\) must be a number above 0"),
    ({"decoder_text_input": "x"}, "decoder_text_input is not supported"),
    ({"beam_width": 4}, r"beam_width \(4\) is not supported"),
    ({"end_id": 5000}, r"end_id \(5000\) must be a token id"),
]


@pytest.mark.parametrize("model", TEXT_MODELS)
@pytest.mark.parametrize(("changes", "message"), TEXTS, ids=names(TEXTS))
def test_text_requests(served: Served, proxy: Served, model: str, changes: dict[str, Any], message: str) -> None:
    given = {"text_input": "def", "max_tokens": 4, **changes}
    as_tensors = {name: value.encode() if isinstance(value, str) else value for name, value in given.items()}
    refused_over_grpc(served, model, scalars(**as_tensors), message)
    is_json = all(isinstance(value, str) or np.isfinite(value) for value in given.values())
    for where in (served, proxy) if is_json else ():
        refused_over_http(where, model, given, message)


def test_huge_max_tokens_are_cut_to_what_the_engine_holds(served: Served, proxy: Served) -> None:
    [answer] = ask(served, "tensorrt_llm", tokens([5] * 1000, 2**31 - 1, end_id=-1))
    assert answer["sequence_length"] == [[24]]
    body = {"text_input": "x" * 4000, "max_tokens": 2**31 - 1, "end_id": -1, "return_num_output_tokens": True}
    for model in TEXT_MODELS:
        status, answer = post(proxy, model, body)
        assert status == 200 and answer["num_output_tokens"] == 24


# What tensorrt_llm takes; a text model takes the same under its own names.
TAKEN = """
    guided_decoding_guide_type guided_decoding_guide
    embedding_bias embedding_bias_words embedding_bias_weights return_context_logits return_generation_logits
    input_ids input_lengths request_output_len num_return_sequences end_id pad_id stop_words_list bad_words_list
    temperature runtime_top_k runtime_top_p repetition_penalty min_tokens presence_penalty frequency_penalty seed
    return_log_probs return_num_input_tokens return_num_output_tokens exclude_input_in_output stop streaming
    text_input max_tokens stop_words bad_words top_k top_p stream
""".split()
ARRAYS = {kind: array for array, kind in TYPES.items()} | {"STRING": np.object_}


@pytest.mark.parametrize("model", ["tensorrt_llm", *TEXT_MODELS])
def test_every_field_that_is_not_supported_is_refused_by_name(served: Served, model: str) -> None:
    given = tokens([5], 4) if model == "tensorrt_llm" else scalars(text_input=b"def", max_tokens=4)
    refused = 0
    for one in inputs(model):
        if one.name in TAKEN:
            continue
        shape = [1, *(1 if size == -1 else size for size in one.dims)]
        value = np.full(shape, b"7" if one.type == "STRING" else 7, ARRAYS[one.type])
        own = "len_penalty" if one.name == "length_penalty" else one.name
        refused_over_grpc(served, model, {**given, one.name: value}, rf"{own}\b.* is not supported")
        refused += 1
    assert refused >= 10


WRONG_TENSORS = [
    ("input_ids", np.array([[1.5]], np.float32), "data-type is 'FP32', but model 'tensorrt_llm' expects 'INT32'"),
    ("input_ids", np.array([[[1]]], np.int32), r"unexpected shape for input 'input_ids'.*got \[1,1,1\]"),
    ("request_output_len", np.array([[1, 2]], np.int32), "unexpected shape for input 'request_output_len'"),
    ("stop_words_list", np.zeros((1, 3, 2), np.int32), "unexpected shape for input 'stop_words_list'"),
    ("stop_words_list", np.zeros((1, 2, 70_000), np.int32), "stop_words_list has 70000 token ids, .* 65536"),
    ("embedding_bias", np.zeros((1, 5), np.float32), r"embedding_bias has shape \[1, 5\], but must have shape"),
    ("seed", np.array([[-1]], np.int32), "data-type is 'INT32', but model 'tensorrt_llm' expects 'UINT64'"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG_TENSORS)
def test_tensors_of_another_type_or_shape(served: Served, name: str, value: np.ndarray, message: str) -> None:
    refused_over_grpc(served, "tensorrt_llm", {**tokens([5], 4), name: value}, message)


@pytest.mark.parametrize("model", TEXT_MODELS)
def test_text_that_is_none(served: Served, model: str) -> None:
    given = {**scalars(max_tokens=4), "text_input": np.array([[b"\xff\xfe"]], np.object_)}
    refused_over_grpc(served, model, given, "text_input is not valid UTF-8")


NO_REQUESTS: list[tuple[bytes, str]] = [
    (b"", "the body is not JSON"),
    (b"{", "the body is not JSON"),
    (b"[" * 100_000, "the body is not JSON"),
    (b"[]", "the body must be a JSON object"),
    (b'{"text_input": "x", "max_tokens": 4, "temperature": NaN}', "the body is not JSON: NaN is not a JSON number"),
    (b'{"text_input": "x", "max_tokens": "many"}', "Unable to parse 'data'"),
    (b'{"text_input": "x", "max_tokens": 1e99}', "Unable to parse 'data'"),
    (b'{"text_input": "x", "max_tokens": 4294967300}', r"max_tokens \(4294967300\) must fit into INT32"),
    (b'{"text_input": "x", "max_tokens": 4, "seed": -1}', r"seed \(-1\) must fit into UINT64"),
    (b'{"text_input": "x", "max_tokens": [4, 5]}', "batch size does not match"),
    (b'{"text_input": 5, "max_tokens": 4}', "."),
    (b'{"text_input": "\\ud800", "max_tokens": 4}', "."),
    (b'{"text_input": ["x", "y"], "max_tokens": 4}', "batch size does not match"),
    (b'{"text_input": "x"}', r"missing required input\(s\) \['max_tokens'\]"),
]


@pytest.mark.parametrize(("body", "message"), NO_REQUESTS, ids=range(len(NO_REQUESTS)))
def test_bodies_that_are_no_requests(proxy: Served, body: bytes, message: str) -> None:
    refused_over_http(proxy, "tensorrt_llm_bls", body, message)


@pytest.mark.parametrize("model", TEXT_MODELS)
@pytest.mark.parametrize("name", ["temprature", "beam_widht", "timeout"])
def test_names_that_are_no_tensors(proxy: Served, model: str, name: str) -> None:
    for value in (2, 2.5, "x", True):
        refused_over_http(proxy, model, {"text_input": "def", "max_tokens": 4, name: value}, f"{name} is not supported")


SEVERAL = [{"stream": True}, {"stream": [True]}, {"num_return_sequences": 2}, {"num_return_sequences": [2]}]


@pytest.mark.parametrize("fields", SEVERAL, ids=repr)
@pytest.mark.parametrize("model", TEXT_MODELS)
def test_generate_returns_one_response(proxy: Served, model: str, fields: dict[str, Any]) -> None:
    """Triton itself says so with status 200, after the model has done all its work."""
    body = {"text_input": "def", "max_tokens": 4, **fields}
    status, answer = post(proxy, model, body)
    [name] = fields
    assert status == 400 and re.match(rf"{name} \((true|2)\) needs generate_stream", answer["error"])
    assert len(events(proxy, model, body)) > 1


def test_bodies_of_100_mb(served: Served, proxy: Served) -> None:
    body = json.dumps({"text_input": "x" * 100_000_000, "max_tokens": 4}).encode()
    refused_over_http(proxy, "tensorrt_llm_bls", body, "the body must have at most 8388608 bytes", 413)
    assert post(served, "tensorrt_llm_bls", body)[0] == 400
    given = scalars(text_input=b"x" * 100_000_000, max_tokens=4)
    refused_over_grpc(served, "tensorrt_llm_bls", given, "text_input has 100000000 bytes, but must have at most")
    refused_over_grpc(served, "tensorrt_llm", tokens([5] * 25_000_000, 4), "the prompt has 25000000 tokens")


def test_grpcs_own_status(served: Served) -> None:
    """Of a call without a stream: in one, an error is a response with words alone."""
    import tritonclient.grpc as grpc

    given = {"QUERY": tensor("", np.object_), "REQUEST_OUTPUT_LEN": tensor(4, np.int32)}
    with (
        grpc.InferenceServerClient(f"127.0.0.1:{served.grpc}") as client,
        pytest.raises(grpc.InferenceServerException, match="text_input is empty") as caught,
    ):
        client.infer("preprocessing", inputs_of(given))
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_what_is_not_there(proxy: Served) -> None:
    status, answer = post(proxy, "nothing", {"text_input": "x", "max_tokens": 4})
    assert status == 404 and "nothing" in answer["error"], (status, answer)
