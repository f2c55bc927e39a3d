"""What traffic asks for: a dataset file of TensorRT-LLM's shape, or lengths drawn from a distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.bench.batch import Prompts
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import read_json
from trtllm_pt.requests.messages import Request, SamplingParams


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt, and how many tokens to write after it."""

    input_ids: tuple[int, ...]
    output_len: int

    def with_other_ids(self, prompts: Prompts) -> Sample:
        """As long, for a warm-up: the engine knows the prompts that it has seen."""
        return Sample(prompts.draw(len(self.input_ids)), self.output_len)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Normal distributions, in tokens; what is drawn is rounded, and at least 1."""

    input_mean: int
    input_stdev: float
    output_mean: int
    output_stdev: float

    def draw(self, count: int, prompts: Prompts, seed: int) -> list[Sample]:
        random = np.random.default_rng(seed)
        inputs = random.normal(self.input_mean, self.input_stdev, count)
        outputs = random.normal(self.output_mean, self.output_stdev, count)
        return [
            Sample(prompts.draw(max(1, round(given))), max(1, round(wanted)))
            for given, wanted in zip(inputs.tolist(), outputs.tolist(), strict=True)
        ]


def read_dataset(path: Path) -> list[Sample]:
    """`{"samples": [{"input_ids": […], "output_len": n}]}`. Raises UsageError, naming the sample."""
    samples = read_json(path).get("samples")
    if not isinstance(samples, list) or not samples:
        raise UsageError(f'{path} has no samples: it must hold {{"samples": [{{"input_ids": […], "output_len": n}}]}}')
    return [_sample(data, f"{path}: samples[{number}]") for number, data in enumerate(samples)]


def _sample(data: Any, where: str) -> Sample:
    if not isinstance(data, dict):
        raise UsageError(f"{where} is a {type(data).__name__}, wanted an object")
    ids, length = data.get("input_ids"), data.get("output_len")
    if not isinstance(ids, list) or not ids:
        raise UsageError(f"{where}: input_ids ({ids!r}) must be a list of token ids")
    if type(length) is not int or length < 1:
        raise UsageError(f"{where}: output_len ({length!r}) must be a whole number of at least 1")
    return Sample(tuple(ids), length)


def as_requests(samples: Sequence[Sample], manifest: EngineManifest) -> list[Request]:
    """Greedy and without an end token. Raises UsageError, naming the sample, for one that the engine cannot take."""
    limits = manifest.limits
    requests = []
    for number, sample in enumerate(samples):
        sampling = SamplingParams(max_tokens=sample.output_len, end_id=-1)
        request = Request(id=number, token_ids=sample.input_ids, sampling=sampling)
        try:
            limits.check(request)
        except UsageError as error:
            raise UsageError(f"samples[{number}]: {error}") from None
        length = len(sample.input_ids) + sample.output_len
        if length > manifest.max_seq_len:
            raise UsageError(
                f"samples[{number}]: {len(sample.input_ids)} tokens in and {sample.output_len} out are {length}, "
                f"the engine's max_seq_len is {manifest.max_seq_len}"
            )
        requests.append(request)
    return requests
