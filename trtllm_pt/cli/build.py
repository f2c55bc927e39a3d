"""`trtllm-pt build`: a checkpoint to an engine per rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtllm_pt.cli.options import output_option
from trtllm_pt.cli.text import duration
from trtllm_pt.cli.trtllm_build import TENSORRT_LLM_ONLY, Given, trtllm_build_options
from trtllm_pt.errors import UsageError

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
    help="auto: embedded, the only engine of this version.",
)
@trtllm_build_options
def command(checkpoint: Path | None, checkpoint_dir: Path | None, output: Path, engine: str, **parsed: Any) -> None:
    """Build one engine per rank of a checkpoint.

    \b
    Examples:
      trtllm-pt build build/demo -o engines/demo
      trtllm-pt build build/demo -o engines/demo --max_batch_size 64 --max_num_tokens 4096
    """
    source = checkpoint or checkpoint_dir
    if source is None:
        raise UsageError("build needs a checkpoint: `trtllm-pt build CKPT -o ENGINES`")
    given = Given.of(parsed)
    if engine != "tensorrt_llm":
        given.refuse_all_but_embedded()
    from trtllm_pt.engine import BuildOptions, build

    report = build(source, output, engine=engine, options=BuildOptions(**given.common()))
    click.echo(
        f"{report.path}: {report.engine} engine, compiled graph: cache {report.cache}, {duration(report.seconds)}",
        err=True,
    )
