"""Parameters of requests, which Triton makes of all names that are no tensors. In this process: see in_process.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.client import scalars, tokens
from tests.serving.conftest import needs_triton
from tests.serving.in_process import Triton, engine_folder, text_inputs, triton_of
from tests.text.tokenizers import CASES
from trtllm_pt.requests.messages import Request

pytestmark = needs_triton
CASE = CASES["byte fallback"]
SEEN: list[Request] = []


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    def answer(request: Request) -> tuple[int, ...]:
        SEEN.append(request)
        return CASE.answer

    root = tmp_path_factory.mktemp("parameters")
    with triton_of(engine_folder(root / "engines", CASE.tokenizer, [2]), answer, root) as found:
        yield found


INPUTS: dict[str, dict[str, Any]] = {
    "tensorrt_llm_bls": text_inputs(text_input="Hello", max_tokens=4),
    "ensemble": text_inputs(text_input="Hello", max_tokens=4),
    "tensorrt_llm": tokens([5], 4),
    "preprocessing": text_inputs(QUERY="Hello", REQUEST_OUTPUT_LEN=4),
    "postprocessing": {"TOKENS_BATCH": tokens([5], 4)["input_ids"][None], "SEQUENCE_LENGTH": scalars(n=1)["n"]},
}


@pytest.mark.parametrize("model", INPUTS)
@pytest.mark.parametrize("name", ["temprature", "beam_widht", "timeout", "priority"])
def test_unknown_names_are_refused(triton: Triton, model: str, name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"^{name} is not supported \[invalid\]$"):
        list(triton.ask(model, INPUTS[model], parameters={"id": "mine", name: 2}))


@pytest.mark.parametrize("model", INPUTS)
def test_the_id_of_a_body_is_accepted(triton: Triton, model: str) -> None:
    assert list(triton.ask(model, INPUTS[model], parameters={"id": "mine"}))


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble", "tensorrt_llm"])
def test_fields_without_a_tensor_reach_the_engine(triton: Triton, model: str) -> None:
    list(triton.ask(model, INPUTS[model], parameters={"min_p": 0.25}))
    assert SEEN[-1].sampling.min_p == 0.25


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble", "tensorrt_llm"])
def test_priority_and_salt_reach_the_engine(triton: Triton, model: str) -> None:
    list(triton.ask(model, INPUTS[model], parameters={"queue_priority": -5, "cache_salt": "mine"}))
    assert (SEEN[-1].sampling.priority, SEEN[-1].sampling.cache_salt) == (-5, "mine")
    with pytest.raises(RuntimeError, match=r"^cache_salt \(5\) must be a text of at most 256 characters \[invalid\]$"):
        list(triton.ask(model, INPUTS[model], parameters={"cache_salt": 5}))


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
def test_biases_of_words(triton: Triton, model: str) -> None:
    """Each token of a word gets its weight, and a token of several words their sum."""
    words = {word: CASE.tokenizer.encode(word, add_special_tokens=False).ids for word in ("the end", "end")}
    bias = dict.fromkeys((token for ids in words.values() for token in ids), 0.0)
    for ids, weight in zip(words.values(), (2.5, -1.0), strict=True):
        for token in ids:
            bias[token] += weight
    given = text_inputs(embedding_bias_words=list(words), embedding_bias_weights=[2.5, -1.0])
    list(triton.ask(model, INPUTS[model] | given))
    assert dict(SEEN[-1].sampling.logit_bias) == {token: value for token, value in bias.items() if value}
    with pytest.raises(RuntimeError, match="each word needs a weight"):
        list(triton.ask(model, INPUTS[model] | text_inputs(embedding_bias_words=["end"])))


@pytest.mark.parametrize("model", ["tensorrt_llm_bls", "ensemble"])
def test_a_backend_that_does_not_read_them(triton: Triton, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.models["preprocessing"], "_engine_in_python", False)
    with pytest.raises(RuntimeError, match="min_p is not supported: the server's backend has no input for it"):
        list(triton.ask(model, INPUTS[model], parameters={"min_p": 0.25}))
