"""A model with quantised weights behind a real tritonserver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving.client import ask, ids_of, tokens
from tests.serving.conftest import needs_triton, running
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.runtime.llm import LLM

PROMPTS = ["def binary_search(", "import os\n", "class Queue:\n    def "]
LENGTH = 24


@needs_triton
@pytest.mark.slow
def test_an_int4_model_on_two_ranks_gives_the_tokens_of_its_runtime(
    engine: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = engine("pretrained-2-quantised")
    with LLM(folder) as llm:
        ids = [list(llm.encode(prompt)) for prompt in PROMPTS]
        want = [result.token_ids for result in llm.generate(PROMPTS, SamplingParams(max_tokens=LENGTH))]
    with running(folder, tmp_path) as (served, server):
        got = [tuple(ids_of(ask(served, "tensorrt_llm", tokens(prompt, LENGTH, end_id=0)))) for prompt in ids]
        assert server.close() == 0
    assert got == want
