"""Every kind of model on vLLM, on 1, 2 and 4 ranks, eager and compiled, against the reference network."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vllm_plugin.on_vllm.models import ALONE, NAMES, PRETRAINED, TOKENS, config_of, folder_of, prompts
from tests.vllm_plugin.on_vllm.quantized import SCHEMES
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.job.shared_memory import remove_unmapped
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.schedule import schedule_of, sync_points

pytest.importorskip("vllm", reason="make test-vllm")

RUNS = [(name, ranks, mode) for ranks in (1, 2, 4) for mode in ("eager", "compiled") for name in NAMES]
LOW = [("pretrained", 2, "gloo"), ("pretrained", 4, "gloo"), *((scheme, 2, "bfloat16") for scheme in SCHEMES)]
Results = Callable[[str, int, str], dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def results(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What vLLM gave. The first question for a number of ranks runs all models on them."""
    root = tmp_path_factory.mktemp("vllm")

    @cache
    def run(ranks: int) -> Path:
        folder = root / str(ranks)
        folder.mkdir()
        plan = [[name, str(folder_of(name, models)), mode] for name, at, mode in RUNS + LOW if at == ranks]
        (folder / "plan.json").write_text(json.dumps(plan))
        start(ranks, folder)
        return folder

    return lambda name, ranks, mode: json.loads((run(ranks) / f"{name}.{mode}.json").read_text())


def start(ranks: int, folder: Path) -> None:
    """Run the plan on its ranks. None of them outlives this call."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    remove_unmapped("-tp:*-cpushm*")  # vLLM would not start beside them
    logs = [(folder / f"{rank}.log").open("w") for rank in range(ranks)]
    command = [sys.executable, "-m", "tests.vllm_plugin.on_vllm.rank"]
    environment = os.environ | {"MASTER_PORT": port}
    jobs = [
        subprocess.Popen([*command, str(rank), str(ranks), str(folder)], env=environment, stdout=log, stderr=log)
        for rank, log in enumerate(logs)
    ]
    try:
        status = [job.wait(timeout=1800) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert not any(status), (folder / "0.log").read_text()[-3000:]


@pytest.mark.timeout(2000)
@pytest.mark.parametrize(("name", "ranks", "mode"), RUNS, ids=lambda value: str(value))
def test_tokens(results: Results, models: Path, name: str, ranks: int, mode: str) -> None:
    found, config = results(name, ranks, mode), config_of(name)
    assert found["compiled"] == (mode == "compiled")
    reference, given = load_reference(folder_of(name, models)), prompts(config.vocab_size)
    given += [given[place] for place in ALONE]
    for prompt, output in zip(given, found["together"] + found["alone"], strict=True):
        tokens = output["tokens"]
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1]
        assert tokens == logits.argmax(-1).tolist()
        expected = logits.log_softmax(-1)[range(len(tokens)), tokens]
        torch.testing.assert_close(torch.tensor(output["logprobs"]), expected, rtol=1e-3, atol=1e-3)
    assert found["cached"] > 0  # the prompts with a common beginning
    check_all_reduces(found, config, ranks)


def check_all_reduces(found: dict[str, Any], config: ModelConfig, ranks: int) -> None:
    per_forward = sync_points(schedule_of(config)) if ranks > 1 else 0
    assert found["seen"]["all_reduce"] == per_forward * found["seen"]["forward"] and found["seen"]["forward"] > TOKENS


def logprobs_by(model: Path, found: dict[str, Any], vocab_size: int) -> torch.Tensor:
    """The reference's log-probabilities of the tokens that vLLM generated."""
    reference, parts = load_reference(model), []
    for prompt, output in zip(prompts(vocab_size), found["together"], strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([prompt + output["tokens"]]))[0, len(prompt) - 1 : -1]
        parts.append(logits.log_softmax(-1)[range(TOKENS), output["tokens"]])
    return torch.cat(parts)


@pytest.mark.timeout(2000)
@pytest.mark.parametrize("ranks", [2, 4])
def test_bfloat16_between_machines(results: Results, ranks: int) -> None:
    """gloo rounds a sum of bfloat16 at every step, so the ranks exchange float32."""
    found, config = results("pretrained", ranks, "gloo"), config_of("pretrained")
    assert found["summed"] == ["torch.float32"]
    check_all_reduces(found, config, ranks)
    logprobs = torch.tensor([output["logprobs"] for output in found["together"]]).flatten()
    assert (logprobs - logprobs_by(PRETRAINED, found, config.vocab_size)).abs().mean() < 0.06


@pytest.mark.timeout(2000)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_quantised_track_per_rank(results: Results, models: Path, scheme: str) -> None:
    """vLLM's own layers multiply with quantised matrices: it is nearer to the rounded model than to the exact one."""
    found, config, folder = results(scheme, 2, "bfloat16"), config_of(scheme), folder_of(scheme, models)
    check_all_reduces(found, config, 2)
    logprobs = torch.tensor([output["logprobs"] for output in found["together"]]).flatten()
    near, far = (logprobs_by(folder.with_name(name), found, config.vocab_size) for name in ("rounded", "exact"))
    assert (logprobs - near).abs().mean() < min(0.5, (logprobs - far).abs().mean())


def test_a_rank_reads_only_its_own_tracks(results: Results) -> None:
    """Two of eight tracks and the embedding, which is a quarter of the file, and whole pages where tracks meet."""
    size = (folder_of("pretrained", Path()) / "model.safetensors").stat().st_size
    assert 0.4 * size < results("pretrained", 4, "eager")["mapped"] < 0.65 * size
