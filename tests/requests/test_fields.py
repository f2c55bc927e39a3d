"""The table of sampling fields, and that each border of the project has what the table says."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import click
import numpy as np
import pytest

from trtllm_pt.backends import backends
from trtllm_pt.backends.backend import Backend
from trtllm_pt.cli import client, run
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.fields import FIELDS, NUMBERS, PARAMETERS, Field, given_numbers, sampling_problems
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.serving.triton import tensors
from trtllm_pt.serving.triton.models.request import parse

LIMITS = Limits(vocab_size=50, max_seq_len=64, max_input_len=63)
TEXT_MODELS = ("ensemble", tensors.BLS)
PROMPT = {"input_ids": np.array([[5, 6]], np.int32), "input_lengths": np.array([[2]], np.int32)}
DTYPES = {"INT32": np.int32, "FP32": np.float32, "UINT64": np.uint64}


def name(field: Field) -> str:
    return field.name


def other_value(field: Field) -> Any:
    """A value that is allowed and not the default; 0.25 and 0.5 are exact in every float type."""
    return 3 if isinstance(field.default, int) else 0.5


def options(command: click.Command) -> dict[str, click.Parameter]:
    return {str(option.name): option for option in command.params}


def test_the_table_has_every_field() -> None:
    assert {field.name for field in FIELDS} == {field.name for field in fields(SamplingParams)}
    assert len({field.name for field in FIELDS}) == len(FIELDS)


@pytest.mark.parametrize("field", NUMBERS, ids=name)
def test_a_number_on_the_command_line(field: Field) -> None:
    assert options(run.command)[field.name].default == field.default
    assert (field.name in options(client.command)) == (field.text_input is not None)
    flag = "--" + field.name.replace("_", "-")
    parsed = run.command.make_context("run", ["engines", flag, str(other_value(field))])
    assert parsed.params[field.name] == other_value(field)
    with pytest.raises(click.BadParameter, match=rf"{field.name} \([-\w.]+\) must be "):
        run.command.make_context("run", ["engines", flag, "nan" if field.least < 0 else "-1"])


@pytest.mark.parametrize("field", NUMBERS, ids=name)
@pytest.mark.parametrize("kind", ["completions", "chat/completions"])
def test_a_number_in_openais_requests(field: Field, kind: str) -> None:
    requests = pytest.importorskip("trtllm_pt.serving.openai.requests", reason="no jinja2 here")
    assert requests._checked(kind, {field.name: other_value(field)}) == {field.name: other_value(field)}
    with pytest.raises(UsageError, match=rf"{field.name} \('x'\) must be a "):
        requests._checked(kind, {field.name: "x"})


@pytest.mark.parametrize("field", [field for field in FIELDS if field.tensor], ids=name)
def test_a_field_among_tritons_tensors(field: Field) -> None:
    [taken] = [one for one in tensors.inputs(tensors.ENGINE) if one.name == field.tensor]
    assert (taken.type, taken.optional) == (field.tensor_type, not field.required)
    for model in TEXT_MODELS:
        [taken] = [one for one in tensors.inputs(model) if one.name == field.text_input]
        assert taken.optional == (not field.required)
        if field in NUMBERS:
            assert taken.type == field.tensor_type


@pytest.mark.parametrize("field", NUMBERS, ids=name)
def test_a_number_reaches_the_engine_through_triton(field: Field) -> None:
    sampling = SamplingParams(**{"temperature": 1.0, "max_tokens": 5, field.name: other_value(field)})
    given: dict[str, Any] = dict(PROMPT)
    parameters = {}
    for one, value in given_numbers(sampling):
        if one.tensor is None:
            parameters[one.name] = value
        else:
            given[one.tensor] = np.array([[value]], DTYPES[one.tensor_type])
    [prompt] = parse(given, LIMITS, exclude_input=True, engine="an engine", parameters=parameters)
    assert getattr(prompt.sampling, field.name) == other_value(field)
    for one in NUMBERS:
        assert getattr(prompt.sampling, one.name) == getattr(sampling, one.name)


OTHERS: dict[str, Any] = {"priority": -3, "cache_salt": "mine", "top_log_probs": 2, "processed_log_probs": True}


@pytest.mark.parametrize("name", OTHERS)
def test_a_field_that_is_a_parameter_reaches_the_engine_through_triton(name: str) -> None:
    [field] = [field for field in PARAMETERS if field.name == name]
    given = {**PROMPT, "request_output_len": np.array([[4]], np.int32), "return_log_probs": np.array([[True]])}
    [prompt] = parse(given, LIMITS, exclude_input=True, engine="an engine", parameters={field.parameter: OTHERS[name]})
    assert getattr(prompt.sampling, name) == OTHERS[name]


def test_biases_of_the_whole_vocabulary() -> None:
    bias = np.zeros((1, 50), np.float32)
    bias[0, [3, 49]] = 0.5, -100
    given = {**PROMPT, "request_output_len": np.array([[4]], np.int32), "embedding_bias": bias}
    [prompt] = parse(given, LIMITS, exclude_input=True, engine="an engine")
    assert prompt.sampling.logit_bias == ((3, 0.5), (49, -100.0))
    given["embedding_bias"] = bias[:, :40]
    with pytest.raises(UsageError, match=r"^embedding_bias has shape \[1, 40\], but must have shape \[batch, 50\]$"):
        parse(given, LIMITS, exclude_input=True, engine="an engine")


def test_greedy_decoding_names_no_field_of_draws() -> None:
    sampling = SamplingParams(top_k=5, top_p=0.5, min_p=0.5, seed=3, repetition_penalty=2.0)
    assert [field.name for field, _ in given_numbers(sampling)] == ["max_tokens", "repetition_penalty"]


@pytest.mark.parametrize("name", ["max_tokens", "top_k", "min_tokens"])
def test_whole_numbers_that_no_message_holds(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} \({2**64}\) must be at most \d+$"):
        LIMITS.check_sampling(SamplingParams(**{name: 2**64}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (SamplingParams(stop_token_ids=(3, 50)), "stop_token_ids[1] (50) must be a token id between 0 and 49"),
        (SamplingParams(stop_token_ids=("3",)), "stop_token_ids[0] ('3') must be a token id between 0 and 49"),  # type: ignore[arg-type]
        (SamplingParams(logit_bias=((50, 1.0),)), "logit_bias (50) must name token ids between 0 and 49"),
        (SamplingParams(logit_bias=((5, math.inf),)), "logit_bias of token 5 (inf) must be a finite number"),
        (SamplingParams(logit_bias=((5, True),)), "logit_bias of token 5 (True) must be a finite number"),
        (SamplingParams(cache_salt=5), "cache_salt (5) must be a text of at most 256 characters"),  # type: ignore[arg-type]
        (SamplingParams(cache_salt="x" * 257), f"cache_salt ('{'x' * 40}…') must be a text of at most 256 characters"),
        (SamplingParams(priority=2**31), "priority (2147483648) must be at most 2147483647"),
        (SamplingParams(priority=0.5), "priority (0.5) must be a whole number at least -2147483648"),  # type: ignore[arg-type]
    ],
)
def test_other_fields_with_values_that_make_no_sense(sampling: SamplingParams, message: str) -> None:
    assert list(sampling_problems(sampling, 50)) == [message]


@pytest.mark.parametrize(
    ("token_ids", "position", "shown"),
    [
        ((1, 50), 1, "50"),
        ((-1, 5), 0, "-1"),
        ((1, 2, 1.5), 2, "1.5"),
        ((True, 1), 0, "True"),
        ((1, "2"), 1, "'2'"),
        ((1, math.nan), 1, "nan"),
        ((2**70,), 0, str(2**70)),
        (np.array([1, 50], np.int32), 1, "50"),
        (np.array([-1, 60], np.int32), 0, "-1"),
    ],
)
def test_a_bad_token_is_named(token_ids: Any, position: int, shown: str) -> None:
    with pytest.raises(UsageError) as caught:
        LIMITS.check_tokens(token_ids)
    assert str(caught.value) == f"token_ids[{position}] ({shown}) must be a token id between 0 and 49"


@pytest.mark.parametrize("token_ids", [(), (0, 49), [7], np.array([0, 49], np.int32), np.array([], np.int32)])
def test_good_tokens(token_ids: Any) -> None:
    LIMITS.check_tokens(token_ids)


def test_a_bad_token_in_tritons_tensors() -> None:
    given = {**PROMPT, "request_output_len": np.array([[4]], np.int32)}
    given["input_ids"] = np.array([[5, 50]], np.int32)
    with pytest.raises(UsageError, match=r"^token_ids\[1\] \(50\) must be a token id between 0 and 49$"):
        parse(given, LIMITS, exclude_input=True, engine="an engine")
    given["input_lengths"] = np.array([[1]], np.int32)
    assert parse(given, LIMITS, exclude_input=True, engine="an engine")[0].token_ids == (5,)


@pytest.mark.parametrize("backend", backends().values(), ids=str)
def test_a_server_without_our_model_refuses_what_has_no_tensor(backend: Backend) -> None:
    for field in NUMBERS:
        sampling = SamplingParams(**{"temperature": 1.0, "max_tokens": 5, field.name: other_value(field)})
        refused = set(backend.triton_problems(sampling)) - set(backend.problems(sampling))
        unread = backend.triton_backend != "python" and (field.tensor is None or field.tensor in backend.triton_omits)
        assert [field.name in problem for problem in refused] == [True] * unread, refused
    for name, value in (("priority", 3), ("cache_salt", "mine")):
        found = list(backend.triton_problems(SamplingParams(**{name: value})))
        assert any(problem.startswith(name) for problem in found) == (backend.triton_backend != "python")
