"""Engines run end to end on the stand-in: one rank in this process, two under mpirun."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backends.tensorrt.conftest import MODELS, Engines
from tests.backends.tensorrt.requests import PROMPT, workload
from tests.backends.tensorrt.running import running
from tests.configs import LLAMA
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.runtime.llm import RunResult

pytest.importorskip("tensorrt_rtx")  # with which the networks are defined


def opened(folder: Path, **options: Any) -> None:
    with running(folder, **options):
        pass


def reference_tokens(checkpoint: Path, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    model, tokens = load_reference(checkpoint, torch.float64), list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tuple(tokens[len(prompt) :])


def random_prompts(vocab_size: int, lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    draw = random.Random(5)
    return [tuple(draw.randrange(vocab_size) for _ in range(length)) for length in lengths]


@pytest.mark.parametrize("model", MODELS)
def test_greedy_tokens_are_the_references(engines: Engines, model: str) -> None:
    """Prompts in chunks beside others that decode, in slots that are taken over."""
    folder = engines(model, 1)
    with running(folder) as llm:
        prompts = random_prompts(llm.manifest.model.vocab_size, (1, 60, 100, 49, 2))
        results = llm.generate(prompts, SamplingParams(max_tokens=9, end_id=-1))
    checkpoint = folder.parent / f"checkpoint-{model}-1"
    for prompt, result in zip(prompts, results, strict=True):
        assert result.token_ids == reference_tokens(checkpoint, prompt, 9)


def test_prompt_scores_are_the_references(engines: Engines) -> None:
    folder = engines("llama", 1)
    sampling = SamplingParams(max_tokens=4, end_id=-1, log_probs=True, prompt_log_probs=True, top_log_probs=3)
    with running(folder) as llm:
        prompts = random_prompts(llm.manifest.model.vocab_size, (2, 48, 49, 110))
        results = llm.generate(prompts, sampling)
    model = load_reference(folder.parent / "checkpoint-llama-1", torch.float64)
    for prompt, result in zip(prompts, results, strict=True):
        tokens = torch.tensor([*prompt, *result.token_ids])
        with torch.no_grad():
            rows = model(tokens[None])[0].log_softmax(-1)
        found = [*(score.log_prob for score in result.prompt_scores), *result.log_probs]
        torch.testing.assert_close(torch.tensor(found), rows[:-1].gather(1, tokens[1:, None])[:, 0].float())
        tops = [*(score.top for score in result.prompt_scores), *result.top_log_probs]
        assert [[token for token, _ in top] for top in tops] == rows[:-1].topk(3).indices.tolist()


@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt_rtx"])
def test_a_batch_gets_what_each_gets_alone(engines: Engines, builder: str) -> None:
    with running(engines("llama", 1, builder)) as llm:
        requests = workload(10, llm.manifest.model.vocab_size)
        together = llm.generate([prompt for prompt, _ in requests], [sampling for _, sampling in requests])
        for (prompt, sampling), batched in zip(requests, together, strict=True):
            [alone] = llm.generate([prompt], sampling)
            assert batched.token_ids == alone.token_ids
            assert batched.log_probs == pytest.approx(alone.log_probs, abs=1e-5)
        gpu = llm._runtime.session.engine.gpu  # type: ignore[attr-defined]
        # TensorRT-RTX makes graphs itself; for TensorRT there is one for each size of a decode step: 1, 2 and 4 slots.
        assert gpu.captures == (3 if builder == "tensorrt" else 0)
        stats = llm._runtime.stats()
        assert (stats.kv_pages_total, stats.kv_page_tokens, stats.kv_pages_used) == (4, 128, 0)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("of CUDA", "CUDA error: operation not permitted when stream is capturing"),
        ("of TensorRT", "TensorRT failed at a step: it gives no reason"),
    ],
)
def test_without_cuda_graphs_it_goes_on(
    engines: Engines, monkeypatch: Any, caplog: Any, reason: str, message: str
) -> None:
    with running(engines("llama", 1)) as llm:
        [wanted] = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=6, end_id=-1))
    monkeypatch.setenv("STAND_IN_NO_GRAPHS", reason)
    with running(engines("llama", 1)) as llm:
        [found] = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=6, end_id=-1))
    assert found.token_ids == wanted.token_ids
    (line,) = [record.getMessage() for record in caplog.records if "graph" in record.getMessage()]
    assert line == f"no CUDA graph for decode steps of 1 slots: {message}"


def test_streams_cancellation_and_a_stop_string(engines: Engines) -> None:
    with running(engines("pretrained", 1)) as llm:
        [whole] = llm.generate([PROMPT], SamplingParams(max_tokens=12))
        *pieces, last = llm.stream(PROMPT, SamplingParams(max_tokens=12))
        assert isinstance(last, RunResult)
        assert "".join(map(str, pieces)) == last.text == whole.text
        stream = llm.stream(PROMPT, SamplingParams(max_tokens=100, end_id=-1))
        next(stream)
        assert llm._runtime.stats().active_requests == 1
        stream.close()
        llm._runtime.poll(0)
        assert llm._runtime.stats().active_requests == 0
        stop = whole.text[4:9]
        [stopped] = llm.generate([PROMPT], SamplingParams(max_tokens=12), stop=[stop])
        assert stopped.text == whole.text[: whole.text.index(stop)] and stopped.finish_reason == "stop_words"


def test_a_second_question_reuses_the_slot_of_the_first(engines: Engines) -> None:
    with running(engines("llama", 1)) as llm:
        (prompt,) = random_prompts(llm.manifest.model.vocab_size, (40,))
        sampling = SamplingParams(max_tokens=5, end_id=-1)
        [first] = llm.generate([prompt], sampling)
        longer = (*prompt, *first.token_ids, 5, 6)
        [second] = llm.generate([longer], sampling)
        assert llm._runtime.stats().reused_tokens == 44
    assert second.token_ids == reference_tokens(engines("llama", 1).parent / "checkpoint-llama-1", longer, 5)


def test_an_output_can_be_constrained(engines: Engines) -> None:
    sampling = SamplingParams(max_tokens=12, guide_type="choice", guide='["red", "green"]')
    with running(engines("pretrained", 1)) as llm:
        results = llm.generate([PROMPT, "x"], sampling)
    assert {result.text for result in results} <= {"red", "green"}


def edited(folder: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of an engine directory with another config.json."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    change(config)
    (to / "config.json").write_text(json.dumps(config))
    return to


def set_version(config: dict[str, Any]) -> None:
    config["engine"]["versions"] = {"tensorrt": "11.3.0.9"}


def set_batch(config: dict[str, Any]) -> None:
    config["build_config"]["max_batch_size"] = 8


def set_length(config: dict[str, Any]) -> None:
    config["build_config"]["max_seq_len"] = 64
    config["build_config"]["max_input_len"] = 63


def set_target(config: dict[str, Any]) -> None:
    config["compiled"]["targets"] = ["NVIDIA H200"]


def set_format(config: dict[str, Any]) -> None:
    config["engine"]["format"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_version,
            "was built with TensorRT 11.3.0.9, but 11.4.0.106 is installed, and TensorRT runs plans of its own",
        ),
        (set_batch, "rank0.plan was not compiled for max_batch_size 8, max_seq_len 128 and max_num_tokens 48, which"),
        (set_length, "rank0.plan was not compiled for max_batch_size 4, max_seq_len 64 and max_num_tokens 48, which"),
        (
            set_target,
            r"was compiled for NVIDIA H200, and this GPU is Stand-in GPU \(sm89\): build with TensorRT for it",
        ),
        (set_format, "has format 1, but this trtllm-pt reads engines of format 2: run `trtllm-pt build` again"),
    ],
)
def test_a_directory_that_does_not_fit_is_refused(
    engines: Engines, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        opened(edited(engines("llama", 1), tmp_path / "engines", change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"no plan",
            r"rank0.plan does not load on Stand-in GPU \(the magic tag is wrong\): run `trtllm-pt build` again",
        ),
        (None, r"rank0.plan cannot be read \(No such file or directory\): run `trtllm-pt build` again"),
    ],
)
def test_a_broken_plan_is_refused(engines: Engines, tmp_path: Path, content: bytes | None, message: str) -> None:
    folder = edited(engines("llama", 1), tmp_path / "engines", lambda config: None)
    (folder / "rank0.plan").unlink()
    if content is not None:
        (folder / "rank0.plan").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        opened(folder)


def test_a_plan_of_another_version_is_refused(engines: Engines, tmp_path: Path) -> None:
    folder = edited(engines("llama", 1), tmp_path / "engines", lambda config: None)
    plan = pickle.loads((folder / "rank0.plan").read_bytes())
    (folder / "rank0.plan").write_bytes(pickle.dumps(replace(plan, version="9.9")))
    with pytest.raises(UsageError, match=r"does not load on Stand-in GPU \(the plan is of version 9.9\)"):
        opened(folder)


@pytest.mark.parametrize("tokens", [0, 127, 513])
def test_kv_tokens_that_do_not_fit(engines: Engines, tokens: int) -> None:
    message = rf"kv_tokens \({tokens}\) must be between max_seq_len \(128\), which each request takes, and 512, for max"
    with pytest.raises(UsageError, match=message):
        opened(engines("llama", 1), kv_tokens=tokens)


def test_kv_tokens_are_slots(engines: Engines) -> None:
    found = []
    for tokens, slots in ((300, 2), (None, 4)):
        with running(engines("llama", 1), kv_tokens=tokens) as llm:
            assert llm._runtime.stats().kv_pages_total == slots
            prompts = random_prompts(llm.manifest.model.vocab_size, (5, 6, 7))
            results = llm.generate(prompts, SamplingParams(max_tokens=4, end_id=-1))
            found.append([result.token_ids for result in results])
    assert found[0] == found[1]


def test_the_cache_takes_the_memory_that_is_free(engines: Engines, monkeypatch: Any) -> None:
    slot = 2 * LLAMA.num_layers * LLAMA.num_kv_heads * 128 * LLAMA.head_size * 4
    monkeypatch.setenv("STAND_IN_MEMORY", str(3 * slot))
    with running(engines("llama", 1)) as llm:
        assert llm._runtime.stats().kv_pages_total == 2  # nine tenths of it
    monkeypatch.setenv("STAND_IN_MEMORY", str(slot))
    with pytest.raises(UsageError, match="the memory of Stand-in GPU has no room for a KV cache of 128 tokens: lower"):
        opened(engines("llama", 1))


def test_a_step_that_fails_ends_the_engine(engines: Engines, monkeypatch: Any) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", "1")
    with running(engines("llama", 1)) as llm:
        with pytest.raises(RunError, match="TensorRT failed at a step: it gives no reason"):
            llm.generate([[1, 2, 3]], SamplingParams(max_tokens=3, end_id=-1))
        with pytest.raises(UsageError, match="this engine is closed"):
            llm.generate([[1]])


def test_without_a_gpu(engines: Engines, monkeypatch: Any) -> None:
    monkeypatch.setenv("STAND_IN_GPUS", "0")
    message = (
        "holds TensorRT plans, and no NVIDIA GPU is visible here. Without one, `trtllm-pt inspect` shows them, `make"
    )
    with pytest.raises(UsageError, match=message):
        opened(engines("llama", 1))
