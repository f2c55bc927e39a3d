"""Converts the input tensors of `tensorrt_llm` to sampling parameters, and its outputs to tensors of responses."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trtllm_pt.errors import UsageError
from trtllm_pt.requests.fields import FIELDS, NUMBERS, PARAMETERS, Field
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import SamplingParams, Tokens, TokenScore, TopLogProbs
from trtllm_pt.requests.sequence import possible_start
from trtllm_pt.serving.triton import word_lists
from trtllm_pt.serving.triton.models.base import Array, Arrays, text

MOST_OUTPUTS = 1024  # the limit for the outputs of one request
_SEEDS = 2**64
# Fields that are not supported, with the values that ask for nothing. Other values are refused, and so are other
# fields.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "beam_width": (1,),
    "len_penalty": (0, 1),
    "early_stopping": (0,),
    "beam_search_diversity_rate": (0,),
    "runtime_top_p_decay": (1,),
    "return_perf_metrics": (0,),
    "prompt_vocab_size": (0,),
    # These the embedded engine has. An engine that a Triton backend in C++ runs may not have them.
    "num_return_sequences": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}
_TAKEN = {one.tensor for one in FIELDS} | {
    *"""
    input_ids input_lengths num_return_sequences pad_id return_num_input_tokens return_num_output_tokens
    exclude_input_in_output stop streaming
""".split()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One row of the batch of a request, after parsing."""

    token_ids: tuple[int, ...]
    sampling: SamplingParams
    sequences: int  # the number of outputs
    streaming: bool
    exclude_input: bool  # whether an unstreamed output excludes the prompt; a streamed one always does
    count_input: bool  # whether responses report the number of prompt tokens
    count_output: bool  # whether responses report the number of output tokens

    def samplings(self) -> Iterator[SamplingParams]:
        """Yield the parameters of each output. Their seeds count up from the seed of the request."""
        for number in range(self.sequences):
            yield replace(self.sampling, seed=(self.sampling.seed + number) % _SEEDS)


def is_stop(tensors: Arrays) -> bool:
    """Return whether a request asks to stop the running request that has the same id."""
    return "stop" in tensors and bool(tensors["stop"].any())


def parse(
    tensors: Arrays, limits: Limits, *, exclude_input: bool, engine: str, parameters: Mapping[str, Any] | None = None
) -> list[Prompt]:
    """Return the rows of the batch of a request to our own model, checked against the limits of the engine.

    exclude_input: whether outputs exclude the prompt if the request does not set exclude_input_in_output. engine: its
    name in messages. parameters: those of the request, which hold the sampling fields that have no tensor. Raises
    UsageError, naming the field, for a field that is missing, not supported or wrong.
    """
    for name in tensors:
        if name not in _TAKEN:
            _refuse(name, tensors[name], engine)
    return rows(tensors, limits, exclude_input=exclude_input, parameters=parameters)


def for_cpp_backend(tensors: Arrays, limits: Limits, *, omitted: Collection[str], engine: str) -> dict[str, Array]:
    """Return the inputs of a request to a model that a Triton backend in C++ runs, which does not check them.

    omitted: the inputs that the model does not have. Raises UsageError, naming the field, for a value that needs one of
    them, and for a value that the engine cannot honour. The backend looks for stop words in the prompt as well, so it
    is not given those that the prompt may begin; the caller has to find them.
    """
    for name in tensors:
        if name in omitted or name == "beam_width":  # the latter stays an input, because clients send 1
            _refuse(name, tensors[name], engine)
    kept = {name: array for name, array in tensors.items() if name not in omitted}
    prompts = rows(tensors, limits, exclude_input=True)
    words = [[w for w in p.sampling.stop_words if not possible_start(w, p.token_ids)] for p in prompts]
    return kept | {"stop_words_list": word_lists.pack(words)}


def rows(
    tensors: Arrays, limits: Limits, *, exclude_input: bool, parameters: Mapping[str, Any] | None = None
) -> list[Prompt]:
    """Return the rows of the batch of a request, as `parse` does, without a look at what is not supported."""
    if "input_ids" not in tensors:
        raise UsageError("input_ids is missing")
    ids = tensors["input_ids"]
    if ids.ndim != 2:
        raise UsageError(f"input_ids has shape {list(ids.shape)}, but must have shape [batch, tokens]")
    return [_Row(tensors, parameters or {}, row, len(ids)).prompt(limits, exclude_input) for row in range(len(ids))]


def _refuse(name: str, array: Array, engine: str) -> None:
    """Raise UsageError for an input that is not supported, unless it is empty or its values ask for nothing."""
    if not array.size:
        return
    if name not in _NEUTRAL:
        raise UsageError(f"{name} is not supported by {engine}")
    for value in array.ravel().tolist():
        if value not in _NEUTRAL[name]:
            raise UsageError(f"{name} ({value}) is not supported by {engine}")


class _Row:
    """Reads the scalars and lists of one row of the batch."""

    def __init__(self, tensors: Arrays, parameters: Mapping[str, Any], row: int, rows: int) -> None:
        self._tensors, self._parameters, self._row, self._rows = tensors, parameters, row, rows

    def prompt(self, limits: Limits, exclude_input: bool) -> Prompt:
        ids = self._tensors["input_ids"][self._row]
        length = self._scalar("input_lengths", len(ids))
        if not 0 <= length <= len(ids):
            raise UsageError(f"input_lengths ({length}) must be between 0 and the {len(ids)} tokens of input_ids")
        limits.check_prompt(length)  # checked first, because converting a long prompt takes time
        sequences = self._scalar("num_return_sequences", 1)
        if not 1 <= sequences <= MOST_OUTPUTS:
            raise UsageError(f"num_return_sequences ({sequences}) must be between 1 and {MOST_OUTPUTS}")
        limits.check_tokens(ids[:length])
        sampling = self._sampling(limits.vocab_size)
        limits.check_sampling(sampling)
        limits.check_logits(length, sampling)
        return Prompt(
            token_ids=tuple(ids[:length].tolist()),
            sampling=sampling,
            sequences=sequences,
            streaming=bool(self._scalar("streaming", False)),
            exclude_input=bool(self._scalar("exclude_input_in_output", exclude_input)),
            count_input=bool(self._scalar("return_num_input_tokens", False)),
            count_output=bool(self._scalar("return_num_output_tokens", False)),
        )

    def _sampling(self, vocab_size: int) -> SamplingParams:
        top_k, top_p = self._scalar("runtime_top_k", 0), self._scalar("runtime_top_p", 0.0)
        greedy = not top_k and not top_p  # TensorRT-LLM's rule, which ignores the temperature
        values = {one.name: self._number(one) for one in NUMBERS}
        values["temperature"] = 0.0 if greedy else self._scalar("temperature", 1.0)
        values["top_p"] = top_p or 1.0
        values |= {one.name: bool(self._number(one)) for one in FIELDS if one.tensor_type == "BOOL"}
        return SamplingParams(
            **values,
            end_id=self._scalar("end_id", -1),
            stop_words=self._words("stop_words_list"),
            bad_words=self._words("bad_words_list"),
            include_stop_words=True,
            guide_type=self._text("guided_decoding_guide_type") or None,
            guide=self._text("guided_decoding_guide"),
            logit_bias=self._biases("embedding_bias", vocab_size),
            **{one.name: self._number(one) for one in PARAMETERS if one not in NUMBERS},
        )

    def _number(self, field: Field) -> Any:
        if field.tensor is None:
            return self._parameters.get(field.parameter, field.default)
        return self._scalar(field.tensor, None if field.required else field.default)

    def _text(self, name: str) -> Any:
        return text(self._scalar(name, b""), name)

    def _scalar(self, name: str, default: Any) -> Any:
        array = self._tensors.get(name)
        if array is None:
            if default is None:
                raise UsageError(f"{name} is missing")
            return default
        if array.size != self._rows:
            raise UsageError(f"{name} has {array.size} values, but must have one per row of the batch ({self._rows})")
        value = array.reshape(-1)[self._row]
        return value.item() if isinstance(value, np.generic) else value

    def _words(self, name: str) -> tuple[tuple[int, ...], ...]:
        array = self._tensors.get(name)
        if array is None or not array.size:
            return ()
        if len(array) != self._rows:
            raise UsageError(f"{name} has {len(array)} rows, but must have one per row of the batch ({self._rows})")
        return word_lists.unpack(array[self._row], name)

    def _biases(self, name: str, vocab_size: int) -> tuple[tuple[int, float], ...]:
        """Return the biases of a row that are not 0. There is one for each token of the vocabulary, or none."""
        array = self._tensors.get(name)
        if array is None or not array.size:
            return ()
        if array.shape != (self._rows, vocab_size):
            raise UsageError(f"{name} has shape {list(array.shape)}, but must have shape [batch, {vocab_size}]")
        row = array[self._row]
        found = row.nonzero()[0]
        return tuple(zip(found.tolist(), row[found].tolist(), strict=True))


@dataclass(slots=True)
class Output:
    """One output of a request while it is generated.

    row, rows: its row in the batch, and the size of the batch. sequence: its number among the outputs of the row.
    """

    prompt: Prompt
    row: int
    rows: int
    sequence: int
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top: list[TopLogProbs] = field(default_factory=list)  # the likeliest tokens at each token's position if requested
    prompt_scores: Sequence[TokenScore] = ()  # which no response has contained yet
    logits: list[bytes] = field(default_factory=list)  # float32 [V] of each token if requested
    context_logits: list[bytes] = field(default_factory=list)  # of each token of the prompt, until a response has them
    cached_tokens: int = 0  # tokens of the prompt that were found in the KV cache
    sent: int = 0  # tokens that earlier responses contained

    def take(self, tokens: Tokens) -> None:
        """Add the engine's next tokens and what it says of them."""
        self.prompt_scores = self.prompt_scores or tokens.prompt_scores
        wanted = self.prompt.sampling
        if wanted.context_logits and not self.token_ids:
            self.context_logits += [*(score.logits for score in tokens.prompt_scores), *tokens.logits[:1]]
        self.token_ids += tokens.token_ids
        self.log_probs += tokens.log_probs
        self.top += tokens.top_log_probs
        self.logits += tokens.logits
        self.cached_tokens = tokens.cached_tokens

    def drop_last(self) -> None:
        """Take the last token back, which no response has contained yet."""
        del self.token_ids[-1:], self.log_probs[-1:], self.top[-1:]
        if self.prompt.sampling.generation_logits:
            del self.logits[-1:]

    def response(self) -> dict[str, Array]:
        """Return the tensors of the next response: the new tokens of a stream, or otherwise the whole output."""
        prompt = self.prompt
        new = self.token_ids[self.sent :]
        log_probs, top, logits = self.log_probs[self.sent :], self.top[self.sent :], self.logits[self.sent :]
        self.sent = len(self.token_ids)
        ids = new if prompt.streaming or prompt.exclude_input else [*prompt.token_ids, *new]
        tensors: dict[str, Array] = {
            "output_ids": np.array([[ids]], np.int32),
            "sequence_length": np.array([[len(ids)]], np.int32),
        }
        if prompt.sampling.log_probs:
            tensors["output_log_probs"] = np.array([[log_probs]], np.float32)
            tensors["cum_log_probs"] = np.array([[sum(self.log_probs)]], np.float32)
            if width := prompt.sampling.top_log_probs:
                tensors["output_top_ids"], tensors["output_top_log_probs"] = (a[:, None] for a in _top(top, width))
        if prompt.sampling.generation_logits:
            tensors["generation_logits"] = _rows(logits)[:, None]
        if self.context_logits:
            tensors["context_logits"] = _rows(self.context_logits)
            self.context_logits = []
        if self.prompt_scores and prompt.sampling.prompt_log_probs:
            tensors["context_log_probs"] = np.array([[score.log_prob for score in self.prompt_scores]], np.float32)
            if width := prompt.sampling.top_log_probs:
                found = _top([score.top for score in self.prompt_scores], width)
                tensors["context_top_ids"], tensors["context_top_log_probs"] = found
            self.prompt_scores = ()
        if self.rows > 1:
            tensors["batch_index"] = np.array([[self.row]], np.int32)
        if prompt.sequences > 1:
            tensors["sequence_index"] = np.array([[self.sequence]], np.int32)
        if prompt.count_input:
            tensors["num_input_tokens"] = np.array([[len(prompt.token_ids)]], np.int32)
            tensors["num_cached_tokens"] = np.array([[self.cached_tokens]], np.int32)
        if prompt.count_output:
            tensors["num_output_tokens"] = np.array([[len(new)]], np.int32)
        return tensors


def _rows(logits: Sequence[bytes]) -> Array:
    """Return rows of logits as float32 [1, T, V]."""
    return (
        np.stack([np.frombuffer(row, np.float32) for row in logits])[None]
        if logits
        else np.empty((1, 0, 0), np.float32)
    )


def _top(each: Sequence[TopLogProbs], width: int) -> tuple[Array, Array]:
    """Return token ids int32 [1, T, width] and log-probs float32 [1, T, width]; what is missing is -1 and -inf."""
    ids = np.full((1, len(each), width), -1, np.int32)
    log_probs = np.full((1, len(each), width), -np.inf, np.float32)
    for row, top in enumerate(each):
        for column, (token, log_prob) in enumerate(top):
            ids[0, row, column], log_probs[0, row, column] = token, log_prob
    return ids, log_probs
