"""What runs beside TensorRT-LLM's sources, in a process of its own. Arguments and results are plain data."""

from __future__ import annotations

import gc
import importlib
import json
import pickle
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.backends.tensorrt_llm.cases import FORCED, PROMPTS, Case, write_checkpoint
from tests.backends.tensorrt_llm.checkout import stubs
from tests.backends.tensorrt_llm.checkout.building import LIMITS, recorded, trtllm_build
from tests.backends.tensorrt_llm.checkout.execute.packed import define_reordering
from tests.backends.tensorrt_llm.checkout.execute.program import Program
from tests.backends.tensorrt_llm.checkout.execute.runtime import Plan, generate
from tests.backends.tensorrt_llm.checkout.execute.runtime_view import runtime_view
from tests.backends.tensorrt_llm.checkout.facts import Facts, facts_of
from tests.backends.tensorrt_llm.mistakes import MISTAKES
from trtllm_pt import backends
from trtllm_pt.backends.manifest import BuildOptions

# All prompts at once; and one after the other, the long one in chunks, beside others that decode.
TOGETHER = Plan(PROMPTS, FORCED)
MIXED = Plan(PROMPTS, FORCED, joins=(0, 1, 3), chunk=7)


@dataclass(frozen=True)
class Job:
    """A case on a number of ranks."""

    case: Case
    ranks: int
    plan: Plan = TOGETHER
    options: tuple[str, ...] = ()  # of trtllm-build
    mistake: str | None = None  # with which the network is defined

    def __str__(self) -> str:
        how = " ".join([f"{self.case.name} on {self.ranks}", *self.options])
        return ", ".join([how, *(["mixed"] if self.plan == MIXED else []), *filter(None, [self.mistake])])


@dataclass(frozen=True)
class Built:
    """A checkpoint's engines, and what they said."""

    config: dict[str, Any]  # config.json of the engine directory
    files: list[str]
    facts: list[Facts]  # of every rank
    logits: list[np.ndarray]  # per prompt [1 + forced, padded vocabulary]
    frequencies: list[float]  # RoPE's, as the networks have them


def start(checkout: Path) -> None:
    """Once per process, before anything else."""
    torch.set_num_threads(1)
    stubs.install(checkout)
    define_reordering()
    gc.freeze()  # TensorRT-LLM collects garbage once per rank


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments), raising nothing that the other process could not read."""
    try:
        return function(*arguments)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise


def build(job: Job, folder: Path) -> Built:
    """Writes the case's checkpoint, builds engines by trtllm-build, and runs what was recorded."""
    checkpoint = write_checkpoint(job.case, job.ranks, folder)
    definition = importlib.import_module("trtllm_pt.backends.tensorrt_llm.network")
    with MISTAKES[job.mistake].made(definition) if job.mistake else nullcontext():
        programs = trtllm_build(checkpoint, folder / "engines", *job.options)
    return _built(programs, folder / "engines", job.plan)


def build_with_strategy(job: Job, strategy: str, folder: Path) -> Built:
    """The same by `trtllm-pt build --engine tensorrt_llm --all_reduce_strategy`."""
    checkpoint = write_checkpoint(job.case, job.ranks, folder)
    options = BuildOptions(**LIMITS, extra={"all_reduce_strategy": strategy})
    with recorded() as programs:
        backends.build(checkpoint, folder / "engines", "tensorrt_llm", options, progress=False)
    return _built(programs, folder / "engines", job.plan)


def build_unregistered(job: Job, folder: Path) -> None:
    """trtllm-build without our class, in a process that has not imported it."""
    models = importlib.import_module("tensorrt_llm.models").MODEL_MAP
    known = models.pop("ParallelTrackForCausalLM", None)
    try:
        trtllm_build(write_checkpoint(job.case, job.ranks, folder), folder / "engines", with_class=False)
    finally:
        if known is not None:
            models["ParallelTrackForCausalLM"] = known


def _built(programs: Sequence[Program], engines: Path, plan: Plan) -> Built:
    return Built(
        config=_config(engines),
        files=sorted(path.name for path in engines.iterdir()),
        facts=[facts_of(program) for program in programs],
        logits=_logits(programs, plan, engines),
        frequencies=_frequencies(programs[0]),
    )


def build_stock_llama(checkpoint: Path, output: Path, plan: Plan, options: Sequence[str]) -> list[np.ndarray]:
    """The logits of TensorRT-LLM's own LlamaForCausalLM from a dense checkpoint of ours: the names are the same."""
    file = checkpoint / "config.json"
    config = json.loads(file.read_text())
    del config["parallel_track"]
    file.write_text(json.dumps(config | {"architecture": "LlamaForCausalLM"}))
    programs = trtllm_build(checkpoint, output, *options, with_class=False)
    return _logits(programs, plan, output)


def _config(engines: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((engines / "config.json").read_text())
    return config


def _logits(programs: Sequence[Program], plan: Plan, engines: Path) -> list[np.ndarray]:
    return [logits.numpy() for logits in generate(programs, plan, runtime_view(_config(engines)))]


def _frequencies(program: Program) -> list[float]:
    found = [layer for layer, name in program.weight_names.items() if name == "rotary_inv_freq"]
    return program.constants[found[0]].tolist() if found else []
