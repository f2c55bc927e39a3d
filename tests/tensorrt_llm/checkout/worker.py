"""What runs beside TensorRT-LLM's sources, in a process of its own. Arguments and results are plain data."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.tensorrt_llm.checkout import stubs
from tests.tensorrt_llm.checkout.building import LIMITS, trtllm_build
from tests.tensorrt_llm.checkout.execute.packed import define_reordering
from tests.tensorrt_llm.checkout.execute.runtime import Plan, generate
from tests.tensorrt_llm.checkout.facts import Facts, facts_of


@dataclass(frozen=True)
class Built:
    """A checkpoint's engines."""

    config: dict[str, Any]  # config.json of the engine directory
    files: list[str]
    facts: list[Facts]  # of every rank
    logits: dict[str, list[np.ndarray]]  # per plan and prompt [1 + forced, padded vocabulary]
    frequencies: list[float]  # RoPE's, as the networks have them


def start(checkout: Path) -> None:
    """Once per process, before anything else."""
    torch.set_num_threads(1)
    stubs.install(checkout)
    define_reordering()
    gc.freeze()  # TensorRT-LLM collects garbage once per rank


def build(checkpoint: Path, output: Path, plans: Mapping[str, Plan]) -> Built:
    """Builds the checkpoint's engines into `output` by trtllm-build, and runs what was recorded."""
    programs = trtllm_build(checkpoint, output)
    config = json.loads((output / "config.json").read_text())
    logits = {name: generate(programs, plan, windows(config), LIMITS["max_seq_len"]) for name, plan in plans.items()}
    return Built(
        config=config,
        files=sorted(path.name for path in output.iterdir()),
        facts=[facts_of(program) for program in programs],
        logits={name: [each.numpy() for each in found] for name, found in logits.items()},
        frequencies=[],
    )


def windows(config: dict[str, Any]) -> Sequence[int]:
    """What the executor gives the layers: the engine's own defaults, else the longest sequence."""
    defaults = config["pretrained_config"].get("runtime_defaults") or {}
    full = config["build_config"]["max_seq_len"]
    layers = config["pretrained_config"]["num_hidden_layers"]
    given = defaults.get("max_attention_window") or [full]
    return [min(given[layer % len(given)], full) for layer in range(layers)]
