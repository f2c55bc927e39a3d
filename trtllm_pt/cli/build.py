"""`trtllm-pt build`: a checkpoint to an engine per rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtllm_pt.cli.options import output_option
from trtllm_pt.cli.text import duration
from trtllm_pt.cli.trtllm_build import TENSORRT_LLM_ONLY, given, trtllm_build_options
from trtllm_pt.errors import UsageError
from trtllm_pt.job import launchers

_EPILOG = f"trtllm-build's other options, for --engine tensorrt_llm: {TENSORRT_LLM_ONLY}"


@click.command(
    "build",
    epilog=_EPILOG,
    context_settings={"token_normalize_func": lambda name: name.replace("-", "_")},  # --max-batch-size as well
)
@click.argument("checkpoint", metavar="CKPT", required=False, type=click.Path(path_type=Path))
@click.option("--checkpoint_dir", type=click.Path(path_type=Path), hidden=True)  # trtllm-build's name for CKPT
@output_option("ENGINES", "--output_dir")
@click.option(
    "--engine",
    type=click.Choice(("auto", "embedded", "tensorrt_llm")),
    default="auto",
    show_default=True,
    help="auto: tensorrt_llm where it is installed and a GPU is visible, else embedded.",
)
@trtllm_build_options
@click.option(
    "--all_reduce_strategy",
    type=click.Choice(("NCCL", "AUTO", "ONESHOT", "TWOSHOT")),
    help="How ranks meet.  [TensorRT; default: NCCL]",
)
def command(checkpoint: Path | None, checkpoint_dir: Path | None, output: Path, engine: str, **parsed: Any) -> None:
    """Build one engine per rank of a checkpoint.

    \b
    Examples:
      trtllm-pt build build/demo -o engines/demo
      trtllm-pt build build/demo -o engines/demo --max_batch_size 64 --max_num_tokens 4096
      trtllm-pt build build/demo -o engines/demo --engine tensorrt_llm --gemm_plugin auto --workers 2
      mpirun -n 2 trtllm-pt build build/demo -o engines/demo --engine tensorrt_llm
    """
    source = checkpoint or checkpoint_dir
    if source is None:
        raise UsageError("build needs a checkpoint: `trtllm-pt build CKPT -o ENGINES`")
    from trtllm_pt.backends import BuildOptions, build, choose

    kind, why = choose(engine)
    if why and not launchers.launched_rank():
        click.echo(f"engine: {kind}, as {why}", err=True)
    common, tensorrt_llm = given(parsed)
    report = build(source, output, engine=kind, options=BuildOptions(**common, tensorrt_llm=tensorrt_llm))
    cache = f", compiled graph: cache {report.cache}" if report.cache else ""
    if launchers.launched_rank() > 0:  # the first says it for all
        return
    if parsed.get("dry_run"):
        click.echo(f"dry run: all {report.ranks} ranks can be built; nothing was written", err=True)
        return
    click.echo(f"{report.path}: {report.engine} engine{cache}, {duration(report.seconds)}", err=True)
