"""The network through TensorRT-LLM's own Python: built by `trtllm-build`'s entry point from its sources, on a recording
stand-in for `tensorrt`; what it records is looked at, and executed.

Needs TRTLLM_CHECKOUT, the directory of TensorRT-LLM's sources, and the extra `checkout`; skipped without. Seen to pass
with the sources of 1.3.0rc3, which want the same TensorRT as 1.2.1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.backends.tensorrt_llm.cases import CASES
from tests.backends.tensorrt_llm.checkout import worker
from tests.backends.tensorrt_llm.checkout.execute.runtime_view import runtime_view
from tests.backends.tensorrt_llm.checkout.execute.values import ExecutionError
from tests.backends.tensorrt_llm.checkout.expected import (
    DTYPES,
    INPUTS,
    expected_attention,
    expected_flow,
    expected_view,
)
from tests.backends.tensorrt_llm.checkout.facts import Port
from tests.backends.tensorrt_llm.checkout.harness import Checkout
from tests.backends.tensorrt_llm.checkout.tensorrt.graph import NetworkError
from tests.backends.tensorrt_llm.checkout.truth import true_logits
from tests.backends.tensorrt_llm.checkout.worker import MIXED, Built, Job
from tests.backends.tensorrt_llm.mistakes import MISTAKES
from trtllm_pt.model.layout import padded_vocab_size
from trtllm_pt.model.quantization import is_quantized
from trtllm_pt.model.schedule import schedule_of
from trtllm_pt.model.tensors import tensors

LIMIT = 1e-5  # for logits of order 4; what is seen, 6e-7, comes from the way TensorRT-LLM rounds RoPE's frequencies

JOBS = [Job(case, ranks) for case in CASES.values() for ranks in case.ranks]
# With prompts in chunks beside decode steps; some with the Gemm plugin, which a user may choose.
GEMM_PLUGIN = ("--gemm_plugin", "auto")
SERVED_JOBS = [
    Job(CASES["tp"], 2, MIXED, GEMM_PLUGIN),
    Job(CASES["ladder"], 2, MIXED),
    Job(CASES["pt"], 4, MIXED),
    Job(CASES["pt window"], 8, MIXED, GEMM_PLUGIN),
    Job(CASES["pt qk norm after rope"], 2, MIXED),
    Job(CASES["pt moe"], 1, MIXED),
    Job(CASES["pt W8A16"], 4, MIXED),
    Job(CASES["pt FP8"], 2, MIXED, ("--gemm_plugin", "fp8")),
    Job(CASES["pt FP8 FP8 kv"], 4, MIXED),
]
MISTAKEN_JOBS = [Job(CASES[found.case], found.ranks, mistake=name) for name, found in MISTAKES.items()]


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_collectives(job: Job, checkout: Checkout) -> None:
    check_collectives(job, checkout.built(job))


def check_collectives(job: Job, built: Built) -> None:
    """All-reduces where the schedule puts them and nowhere else, then one gather of logits; on one rank none."""
    config, dtype = job.case.config, DTYPES[job.case.dtype]
    shares, reads = expected_flow(schedule_of(config))
    for facts in built.facts:
        assert list(facts.reads) == list(reads)  # every sub-layer, in the schedule's order
        if job.ranks == 1:
            assert facts.collectives == []
            continue
        assert facts.reads == reads
        *reduces, gather = facts.collectives
        assert [found.kind for found in reduces] == ["AllReduce"] * len(shares)
        assert [found.shares for found in reduces] == shares
        group = tuple(range(job.ranks))
        stream = Port(("num_tokens", str(config.hidden_size)), dtype)
        assert {(found.group, found.strategy, found.operand) for found in reduces} == {(group, 0, stream)}  # 0: NCCL
        # A data dependency keeps each after the one before it, on all ranks alike.
        assert all(number - 1 in found.after for number, found in enumerate(facts.collectives) if number)
        part = padded_vocab_size(config, job.ranks) // job.ranks
        assert (gather.kind, gather.group) == ("AllGather", group)
        assert gather.operand == Port(("batch_size_last_token_ids", str(part)), dtype)


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_network(job: Job, checkout: Checkout) -> None:
    case = job.case
    for rank, facts in enumerate(checkout.built(job).facts):
        assert facts.attention == expected_attention(case, job.ranks, rank)
        assert set(facts.inputs) == INPUTS | ({"all_reduce_workspace"} if job.ranks > 1 else set())
        vocab = str(padded_vocab_size(case.config, job.ranks))
        assert facts.outputs == {"logits": Port(("batch_size_last_token_ids", vocab), "FLOAT")}
        assert facts.unresolved == []


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_types_of_weights(job: Job, checkout: Checkout) -> None:
    case = job.case
    own, quantized = DTYPES[case.dtype], {"W8A16": "INT8", "W4A16": "INT8", "FP8": "FP8"}.get(case.quant_algo)
    for facts in checkout.built(job).facts:
        found: dict[str, set[str]] = {}
        for name, port in facts.weights.items():
            for part in stored_names(name):
                found.setdefault(part, set()).add(port.dtype)
        for spec in tensors(case.config):
            wanted = quantized if quantized and is_quantized(spec) else own
            assert found[spec.name] == {"FLOAT" if spec.kind == "router" else wanted}, spec.name


def stored_names(parameter: str) -> list[str]:
    """A checkpoint's names for what a parameter of the network holds. That may be one track's (attention.qkv.1.weight,
    mlp.1.fc.weight), and gate and fc may be fused."""
    parts = parameter.split(".")
    name = ".".join(part for number, part in enumerate(parts) if number == 2 or not part.isdigit())  # 2: the layer's
    return [name.replace("fused_fc", part) for part in ("fc", "gate")] if "fused_fc" in name else [name]


@pytest.mark.parametrize("job", JOBS, ids=str)
def test_engine_directory(job: Job, checkout: Checkout) -> None:
    built, case = checkout.built(job), job.case
    assert {f"rank{rank}.engine" for rank in range(job.ranks)} == {n for n in built.files if n.endswith(".engine")}
    assert runtime_view(built.config) == expected_view(case, job.ranks)
    plugins = built.config["build_config"]["plugin_config"]
    for name in ("gpt_attention_plugin", "remove_input_padding", "paged_kv_cache", "context_fmha"):
        assert plugins[name], name  # without these there is no in-flight batching
    assert plugins["nccl_plugin"] == (case.dtype if job.ranks > 1 else None)
    assert not plugins["reduce_fusion"] and not plugins["user_buffer"]


@pytest.mark.parametrize("job", JOBS + SERVED_JOBS, ids=str)
def test_logits(job: Job, checkout: Checkout) -> None:
    built = checkout.built(job)
    assert errors(job, built, checkout).max() < LIMIT
    assert not any(logits[:, job.case.config.vocab_size :].any() for logits in built.logits)  # of the padding: zero


def errors(job: Job, built: Built, checkout: Checkout) -> np.ndarray:
    """The largest per step: after the prompts, and after each token that was given. NaN for NaN."""
    wanted = true_logits(job.case, job.ranks, checkout.checkpoint(job), built.frequencies)
    pairs = zip(built.logits, wanted, strict=True)
    return np.max([np.abs(got[:, : want.shape[1]] - want).max(1) for got, want in pairs], axis=0)


@pytest.mark.parametrize("job", MISTAKEN_JOBS, ids=str)
def test_mistakes_show(job: Job, checkout: Checkout) -> None:
    mistake = MISTAKES[job.mistake]
    if mistake.refused:
        with pytest.raises((ExecutionError, NetworkError)):
            checkout.built(job)
        return
    built = checkout.built(job)
    prefill, *decode = errors(job, built, checkout)
    assert max(prefill, *decode) > 1000 * LIMIT
    assert prefill < LIMIT or not mistake.only_in_decode


def test_an_all_reduce_less_is_counted(checkout: Checkout) -> None:
    (job,) = (job for job in MISTAKEN_JOBS if job.mistake == "an all-reduce dropped")
    with pytest.raises(AssertionError):
        check_collectives(job, checkout.built(job))


@pytest.mark.parametrize(("strategy", "number"), [("NCCL", 0), ("AUTO", 3)])
def test_our_own_build_makes_the_same_network(strategy: str, number: int, checkout: Checkout, tmp_path: Path) -> None:
    job = Job(CASES["pt large heads"], 4)
    ours, theirs = checkout.call(worker.build_with_strategy, job, strategy, tmp_path), checkout.built(job)
    for facts, wanted in zip(ours.facts, theirs.facts, strict=True):
        reduces = [found for found in facts.collectives if found.kind == "AllReduce"]
        assert {found.strategy for found in reduces} == {number}
        collectives = [replace(found, strategy=0) if found in reduces else found for found in facts.collectives]
        assert replace(facts, collectives=collectives) == wanted
    assert runtime_view(ours.config) == runtime_view(theirs.config)
    assert all(np.array_equal(*pair) for pair in zip(ours.logits, theirs.logits, strict=True))


def test_without_our_class_the_architecture_is_unknown(checkout: Checkout, tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="ParallelTrackForCausalLM"):
        checkout.call(worker.build_unregistered, Job(CASES["tp"], 1), tmp_path)
