"""Drives TensorRT-LLM's own builder, and keeps the networks that it records."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trtllm_pt
from tests.backends.tensorrt_llm.checkout.execute.program import Program
from tests.backends.tensorrt_llm.checkout.tensorrt.builder import LISTENERS
from tests.backends.tensorrt_llm.checkout.tensorrt.network import INetworkDefinition

SHIM = Path(trtllm_pt.__file__).parent / "backends" / "tensorrt_llm" / "shim.py"
LIMITS = {"max_batch_size": 8, "max_input_len": 64, "max_seq_len": 128, "max_num_tokens": 512}


@contextmanager
def recorded() -> Iterator[list[Program]]:
    """The networks that are built meanwhile, one per rank."""
    programs: list[Program] = []

    def keep(network: INetworkDefinition) -> None:
        programs.append(Program(network))

    LISTENERS.append(keep)
    try:
        yield programs
    finally:
        LISTENERS.remove(keep)


def trtllm_build(checkpoint: Path, output: Path, *options: str, with_class: bool = True) -> list[Program]:
    """`trtllm-build`'s unmodified entry point; engines' config.json is in `output` afterwards."""
    from tensorrt_llm.commands.build import main

    output.mkdir(parents=True)
    arguments = ["--checkpoint_dir", str(checkpoint), "--output_dir", str(output), "--log_level", "error"]
    arguments += [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    if with_class:
        arguments += ["--model_cls_file", str(SHIM), "--model_cls_name", "ParallelTrackForCausalLM"]
    with recorded() as programs, _command_line(arguments + list(options), output):
        main()
    return programs


@contextmanager
def _command_line(arguments: Sequence[str], folder: Path) -> Iterator[None]:
    """Arguments of a program that writes into the directory it stands in (its timing cache)."""
    before = sys.argv, Path.cwd()
    sys.argv = ["trtllm-build", *arguments]
    os.chdir(folder)
    try:
        yield
    finally:
        sys.argv = before[0]
        os.chdir(before[1])
