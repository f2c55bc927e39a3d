"""The command `trtllm-pt build`, which builds an engine for each rank of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import click

from trtllm_pt.backends import BuildOptions, backends, build, choose
from trtllm_pt.backends.backend import Backend
from trtllm_pt.backends.registry import AUTO
from trtllm_pt.cli.build_options import COMMON, build_options, epilog
from trtllm_pt.cli.hosts_options import hosts_options
from trtllm_pt.cli.options import output_option
from trtllm_pt.cli.text import duration
from trtllm_pt.errors import UsageError
from trtllm_pt.job import launchers
from trtllm_pt.job.hosts import Hosts


@click.command("build", epilog=epilog())
@click.argument("checkpoint", metavar="CKPT", required=False, type=click.Path(path_type=Path))
@click.option("--checkpoint_dir", type=click.Path(path_type=Path), hidden=True)  # trtllm-build's name for CKPT
@output_option("ENGINES", "--output_dir")
@click.option(
    "--engine",
    type=click.Choice((AUTO, *backends())),
    default=AUTO,
    show_default=True,
    help=f"Backend to build for; {AUTO} takes the first of {', '.join(backends())} that can run on this machine.",
)
@build_options
@hosts_options
def command(checkpoint: Path | None, checkpoint_dir: Path | None, output: Path, engine: str, **parsed: Any) -> None:
    """Build an engine for each rank of a checkpoint.

    \b
    Examples:
      trtllm-pt build build/demo -o engines/demo
      trtllm-pt build build/demo -o engines/demo --max_batch_size 64 --max_num_tokens 4096
      trtllm-pt build build/demo -o engines/demo --engine tensorrt_llm --gemm_plugin auto --workers 2
      mpirun -n 2 trtllm-pt build build/demo -o engines/demo --engine tensorrt_llm
      trtllm-pt build build/demo -o engines/demo --engine tensorrt_llm --hosts node1:8,node2:8
    """
    source = checkpoint or checkpoint_dir
    if source is None:
        raise UsageError("CKPT is missing; use `trtllm-pt build CKPT -o ENGINES`")
    backend, why = choose(engine)
    if why and not launchers.launched_rank():
        click.echo(f"engine: {backend.name}, because {why}", err=True)
    values = {name: value for name, value in parsed.items() if value is not None}
    common = {name: values.pop(name) for name in COMMON if name in values}
    _refuse_foreign(engine, backend.name, values)
    if (hosts := Hosts.from_environment()) is not None and launchers.launched_ranks() is None:
        _build_on(hosts, backend, source)
    report = build(source, output, engine=backend.name, options=BuildOptions(**common, extra=values))
    if launchers.launched_rank() > 0:  # rank 0 reports for all ranks
        return
    if parsed.get("dry_run"):
        click.echo(f"dry run: all {report.ranks} ranks can be built; nothing was written", err=True)
        return
    cache = f", compiled graph: cache {report.cache}" if report.cache else ""
    click.echo(f"{report.path}: {backend.name} engine{cache}, {duration(report.seconds)}", err=True)


def _build_on(hosts: Hosts, backend: Backend, checkpoint: Path) -> NoReturn:
    """Start this command again on the hosts, with a process for each rank or, if there are fewer, each slot."""
    from trtllm_pt.checkpoint.manifest import CheckpointManifest
    from trtllm_pt.job.mpirun import start_again

    if not backend.builds_on_hosts:
        raise UsageError(
            f"--hosts ({', '.join(hosts.slots)}): {backend.title} is built on one machine for all ranks; "
            "build it here, and copy the folder to the same path on the other hosts"
        )
    start_again(min(CheckpointManifest.from_dir(checkpoint).ranks, sum(hosts.slots.values())), backend.mpi_hint)


def _refuse_foreign(engine: str, name: str, values: dict[str, Any]) -> None:
    """Raise UsageError for an option that belongs only to other backends."""
    own = {option.name for option in backends()[name].options}
    foreign = [f"--{option}" for option in values if option not in own]
    if foreign:
        taken = ", ".join(f"--{option}" for option in (*COMMON, *sorted(own)))
        raise UsageError(f"{', '.join(foreign)} cannot be used with --engine {name}, which takes {taken}")
