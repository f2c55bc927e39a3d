"""transformers' Trainer fine-tunes the trained model, and the result is built into an engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.checkpoint.test_transformers import greedy, load
from tests.configs import PRETRAINED
from trtllm_pt import LLM, SamplingParams, build, convert
from trtllm_pt.checkpoint.load import load_reference


@pytest.mark.slow
def test_fine_tuning(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the extra `train` has it")
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    model = load(PRETRAINED, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(PRETRAINED, trust_remote_code=True)
    window = tokenizer(Path(__file__).read_text())["input_ids"][:128]
    arguments = TrainingArguments(
        str(tmp_path / "runs"),
        max_steps=5,
        learning_rate=1e-3,
        logging_steps=1,
        gradient_checkpointing=True,
        use_cpu=True,
        report_to=[],
    )
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": window, "labels": window}] * 8)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 5 and losses[-1] < losses[0] - 1  # of the same text again and again
    trainer.save_model(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")

    checkpoint = convert(tmp_path / "tuned", tmp_path / "checkpoint", dtype="float32")
    build(checkpoint, tmp_path / "engine")
    prompt = torch.tensor([window[:12]])
    want = greedy(load_reference(tmp_path / "tuned"), prompt, 16)[0, 12:].tolist()
    with LLM(tmp_path / "engine") as llm:
        [result] = llm.generate([window[:12]], SamplingParams(max_tokens=16, end_id=-1))
    assert list(result.token_ids) == want
