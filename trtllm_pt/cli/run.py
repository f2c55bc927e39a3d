"""`trtllm-pt run`: generates text from prompts, and starts all ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_pt.cli.hosts_options import hosts_options
from trtllm_pt.cli.options import json_option, sampling_options, speculative_option
from trtllm_pt.cli.text import duration
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.fields import NUMBERS
from trtllm_pt.requests.messages import SamplingParams

if TYPE_CHECKING:
    from trtllm_pt.runtime.llm import LLM, RunResult


@click.command("run")
@click.argument("engines", metavar="ENGINES", type=click.Path(path_type=Path))
@click.argument("prompts", metavar="[PROMPT]...", nargs=-1)
@sampling_options(NUMBERS)
@click.option("--threads", type=click.IntRange(min=1), help="Threads per rank.  [default: cores / ranks]")
@hosts_options
@speculative_option
@json_option
def command(
    engines: Path,
    prompts: tuple[str, ...],
    threads: int | None,
    speculative: str | None,
    as_json: bool,
    **sampling_fields: Any,
) -> None:
    """Generate text from prompts.

    The output for one PROMPT is printed as it is generated; several prompts run in one batch and are printed at the
    end. Without PROMPT, the prompt is read from standard input.

    The command starts one process per rank, or joins the ranks if mpirun started it.

    \b
    Examples:
      trtllm-pt run engines/demo "def binary_search("
      trtllm-pt run engines/demo "import os" "class Queue:" --max-tokens 32 --temperature 0.8 --seed 1
      trtllm-pt run engines/demo --json < prompt.txt
      mpirun -n 2 trtllm-pt run engines/demo "def binary_search("
      trtllm-pt run engines/demo "def binary_search(" --hosts node1:1,node2:1 --interface eth0
    """
    texts = list(prompts) or [_standard_input()]
    sampling = SamplingParams(**sampling_fields)
    from trtllm_pt.runtime.llm import LLM

    with LLM(engines, threads=threads, speculative=speculative) as llm:
        if as_json:
            results = [_json(result) for result in llm.generate(texts, sampling)]
            click.echo(json.dumps(results[0] if len(results) == 1 else results, indent=2))
        elif len(texts) == 1:
            _closing_line(engines, [_stream(llm, texts[0], sampling)])
        else:
            _closing_line(engines, _blocks(llm, texts, llm.generate(texts, sampling)))


def _standard_input() -> str:
    if sys.stdin.isatty():
        raise UsageError("PROMPT is missing: pass it as `trtllm-pt run ENGINES PROMPT`, or on standard input")
    return sys.stdin.read().removesuffix("\n")


def _stream(llm: LLM, prompt: str, sampling: SamplingParams) -> RunResult:
    shown = False  # whether the prompt was printed, which waits until the engine has accepted it
    for part in llm.stream(prompt, sampling):
        if not shown:
            _write(click.style(prompt, bold=True))
            shown = True
        if not isinstance(part, str):
            _write(_token_ids(llm, part) + "\n")
            return part
        _write(part)
    raise AssertionError("a stream yields its result last")


def _token_ids(llm: LLM, result: RunResult) -> str:
    """Return the output as token ids if the engine has no tokenizer. Its prompts are token ids, too."""
    return "" if llm.tokenizer else "".join(f" {token}" for token in result.token_ids)


def _write(text: str) -> None:
    click.echo(text, nl=False)
    sys.stdout.flush()


def _blocks(llm: LLM, prompts: list[str], results: list[RunResult]) -> list[RunResult]:
    for number, (prompt, result) in enumerate(zip(prompts, results, strict=True), 1):
        output = result.text + _token_ids(llm, result)
        click.echo(f"--- {number} ---\n{click.style(prompt, bold=True)}{output}")
    return results


def _closing_line(engines: Path, results: list[RunResult]) -> None:
    from trtllm_pt.backends import inspect

    tokens = sum(len(result.token_ids) for result in results)
    first = max(result.ttft_s for result in results)
    rate = sum(result.tokens_per_s for result in results)
    model = inspect(engines)
    seen = results[0].sync_points_seen
    syncs = f"{model['sync_points']} by the schedule" if seen is None else str(seen)
    reasons = ", ".join(sorted({str(result.finish_reason) for result in results}))
    click.echo(
        f"{tokens} tokens ({reasons}) · TTFT {duration(first)} · {rate:.1f} tokens/s · "
        f"syncs per forward: {syncs}, against {model['tensor_parallel_sync_points']} for tensor parallelism",
        err=True,
    )


def _json(result: RunResult) -> dict[str, Any]:
    return {
        "text": result.text,
        "token_ids": list(result.token_ids),
        "ttft_s": result.ttft_s,
        "tokens_per_s": result.tokens_per_s,
        "sync_points_seen": result.sync_points_seen,
        "finish_reason": result.finish_reason,
    }
