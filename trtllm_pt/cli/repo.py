"""`trtllm-pt repo`: writes a model repository for Triton."""

from __future__ import annotations

from pathlib import Path

import click

from trtllm_pt.cli.options import output_option, speculative_option


@click.command("repo")
@click.argument("engines", metavar="ENGINES", type=click.Path(path_type=Path))
@output_option("REPO")
@click.option(
    "--engine-path",
    metavar="PATH",
    help="Path of the engines on the machine that serves them.  [default: their present path]",
)
@click.option(
    "--max-queue-size",
    type=click.IntRange(min=0),
    default=1024,
    show_default=True,
    help="Maximum number of waiting requests; more are refused. 0: no limit.",
)
@speculative_option
def command(engines: Path, output: Path, engine_path: str | None, max_queue_size: int, speculative: str | None) -> None:
    """Write a Triton model repository for an engine directory.

    The tensors and parameters are those of TensorRT-LLM's inflight batcher repository, whichever engine is used.

    \b
    Examples:
      trtllm-pt repo engines/demo -o triton_model_repo
      trtllm-pt repo engines/pt-6b -o triton_model_repo --engine-path /engines/pt-6b
    """
    from trtllm_pt.serving.triton.repository import write_repository

    served = write_repository(
        engines, output, engine_path=engine_path, max_queue_size=max_queue_size, speculative=speculative
    )
    backend = served.manifest.backend.triton_backend
    click.echo(f"{output}: backend {backend}, engines at {served.engine_path}", err=True)
