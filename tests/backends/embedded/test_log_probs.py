"""Log-probs of prompts and outputs from built engines: the right numbers, and the same bits in every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.backends.embedded.conftest import FEW_RANKS, Engines
from tests.configs import LLAMA
from tests.engines import RANKS
from trtllm_pt.backends.build import build
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.limits import Limits
from trtllm_pt.requests.messages import Request, SamplingParams, TokenScore
from trtllm_pt.runtime.llm import LLM, RunResult

Prompt = tuple[int, ...]
SCORES = SamplingParams(max_tokens=6, end_id=-1, log_probs=True, prompt_log_probs=True, top_log_probs=5)


def prompts(vocab: int) -> list[Prompt]:
    """Of lengths around a page of 16 tokens, a piece of 64 scored rows, and a step of 128 tokens; two begin alike."""
    draw = torch.Generator().manual_seed(7)
    found = [tuple(torch.randint(vocab, (n,), generator=draw).tolist()) for n in (1, 2, 16, 17, 66, 110)]
    return [*found, found[-1][:64] + found[3]]


def scores(result: RunResult) -> list[TokenScore]:
    """Of all tokens but the first, prompt and output."""
    return [*result.prompt_scores, *map(TokenScore, result.log_probs, result.top_log_probs)]


@pytest.mark.parametrize(
    "all_ranks", [pytest.param(FEW_RANKS, id="few ranks"), pytest.param(RANKS, id="many ranks", marks=pytest.mark.slow)]
)
def test_the_same_bits_on_any_ranks_alone_batched_and_with_a_cached_prefix(
    engines: Engines, all_ranks: tuple[int, ...]
) -> None:
    """And for a token as part of the output as for the same token as part of a prompt."""
    found = []
    for folder in engines(*(f"pretrained-{ranks}" for ranks in all_ranks)):
        with LLM(folder) as llm:
            given = prompts(llm.manifest.model.vocab_size)
            batched = llm.generate(given, SCORES)
            alone = [llm.generate([prompt], SCORES)[0] for prompt in given]  # whose pages are cached by now
            whole = [(*prompt, *result.token_ids) for prompt, result in zip(given, batched, strict=True)]
            only_prompts = llm.generate(whole, SamplingParams(max_tokens=0, prompt_log_probs=True, top_log_probs=5))
        assert [scores(result) for result in batched] == [scores(result) for result in alone]
        assert [scores(result) for result in batched] == [scores(result) for result in only_prompts]
        assert all(result.token_ids == () and result.finish_reason == "length" for result in only_prompts)
        found.append([scores(result) for result in batched])
    assert all(other == found[0] for other in found[1:])
    assert all(len(score.top) == 5 for one in found[0] for score in one)


def check(llm: LLM, log_probs: Sequence[torch.Tensor], given: Sequence[Prompt], results: Sequence[RunResult]) -> None:
    """log_probs: of each prompt with its output, [T, V]: what follows each token."""
    for prompt, result, want in zip(given, results, log_probs, strict=True):
        tokens = (*prompt, *result.token_ids)
        assert len(scores(result)) == len(tokens) - 1
        for score, following, row in zip(scores(result), tokens[1:], want, strict=False):
            assert abs(score.log_prob - row[following].item()) < 1e-5
            likeliest = row.topk(5)
            assert [token for token, _ in score.top] == likeliest.indices.tolist()
            torch.testing.assert_close(
                torch.tensor([p for _, p in score.top]), likeliest.values.float(), rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("ranks", FEW_RANKS)
def test_values_against_the_reference(engines: Engines, ranks: int) -> None:
    [folder] = engines(f"llama-{ranks}")
    model = load_reference(folder.parent / f"checkpoint-{folder.name}", torch.float64)
    with LLM(folder) as llm:
        given = prompts(llm.manifest.model.vocab_size)
        results = llm.generate(given, SCORES)
        with torch.no_grad():
            whole = [torch.tensor([[*prompt, *r.token_ids]]) for prompt, r in zip(given, results, strict=True)]
            check(llm, [model(tokens)[0].log_softmax(-1) for tokens in whole], given, results)


@pytest.mark.slow
def test_values_against_transformers(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=LLAMA.vocab_size,
        hidden_size=LLAMA.hidden_size,
        intermediate_size=LLAMA.intermediate_size,
        num_hidden_layers=LLAMA.num_layers,
        num_attention_heads=LLAMA.num_heads,
        num_key_value_heads=LLAMA.num_kv_heads,
        head_dim=LLAMA.head_size,
        attention_bias=True,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "checkpoint", ranks=2, dtype="float32")
    build(tmp_path / "checkpoint", tmp_path / "engines", engine="embedded")
    with LLM(tmp_path / "engines") as llm:
        given = prompts(LLAMA.vocab_size)
        results = llm.generate(given, SCORES)
        with torch.no_grad():
            whole = [torch.tensor([[*prompt, *r.token_ids]]) for prompt, r in zip(given, results, strict=True)]
            check(llm, [model(tokens).logits[0].double().log_softmax(-1) for tokens in whole], given, results)


@pytest.mark.parametrize("ranks", FEW_RANKS)
def test_whole_rows_of_logits(engines: Engines, ranks: int) -> None:
    """Of prompts in chunks, alone and beside others, and of outputs: those whose log-probs are returned beside them."""
    [folder] = engines(f"llama-{ranks}")
    model = load_reference(folder.parent / f"checkpoint-{folder.name}", torch.float64)
    wanted = replace(SCORES, context_logits=True, generation_logits=True, top_log_probs=0)
    with LLM(folder) as llm:
        given = prompts(llm.manifest.model.vocab_size)
        results = llm.generate(given, [wanted if index % 2 else SCORES for index in range(len(given))])
        [only_first] = llm.generate([given[2]], SamplingParams(max_tokens=3, end_id=-1, context_logits=True))
    for index, (prompt, result) in enumerate(zip(given, results, strict=True)):
        found = [*(score.logits for score in result.prompt_scores), *result.logits]
        if not index % 2:
            assert not any(found)
            continue
        tokens = (*prompt, *result.token_ids)
        with torch.no_grad():
            want = model(torch.tensor([tokens]))[0][:-1].float()
        rows = torch.stack([torch.frombuffer(bytearray(row), dtype=torch.float32) for row in found])
        torch.testing.assert_close(rows, want, rtol=1e-4, atol=1e-4)
        log_probs = [*(score.log_prob for score in result.prompt_scores), *result.log_probs]
        for row, following, log_prob in zip(rows, tokens[1:], log_probs, strict=True):
            assert row.double().log_softmax(-1)[following].item() == pytest.approx(log_prob, abs=1e-5)
    assert len(only_first.logits) == 1 and len(only_first.prompt_scores) == len(given[2]) - 1


def test_too_many_logits() -> None:
    limits = Limits(vocab_size=1 << 17, max_seq_len=4096, max_input_len=4095)
    for prompt, sampling, message in (
        (257, SamplingParams(context_logits=True), r"context_logits of 257 tokens need 134742016 bytes; at most"),
        (10, SamplingParams(max_tokens=257, generation_logits=True), "those of 256 tokens$"),
    ):
        with pytest.raises(UsageError, match=message):
            limits.check(Request(id=1, token_ids=(5,) * prompt, sampling=sampling))
    good = SamplingParams(max_tokens=256, context_logits=True, generation_logits=True)
    limits.check(Request(id=1, token_ids=(5,) * 256, sampling=good))


def test_wrong_fields(engines: Engines) -> None:
    """They are refused before anything runs."""
    from trtllm_pt.requests.fields import sampling_problems

    for sampling, message in (
        (SamplingParams(max_tokens=0), "max_tokens (0) must be a whole number at least 1"),
        (SamplingParams(top_log_probs=3), "top_log_probs (3) needs log_probs or prompt_log_probs"),
        (
            SamplingParams(log_probs=True, top_log_probs=21),
            "top_log_probs (21) must be a whole number between 0 and 20",
        ),
        (SamplingParams(prompt_log_probs=True, processed_log_probs=True), "processed_log_probs (True) needs log_probs"),
    ):
        assert list(sampling_problems(sampling, 100)) == [message]
    assert not list(sampling_problems(SamplingParams(max_tokens=0, prompt_log_probs=True), 100))
