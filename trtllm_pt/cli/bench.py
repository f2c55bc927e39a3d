"""`trtllm-pt bench`: the group of all measurements. The scripts in `benchmarks/` run the same commands."""

from __future__ import annotations

import importlib

import click

COMMANDS = ("latency", "throughput", "all-reduce", "compare", "netlab")
_HIDDEN = ("visit",)  # netlab starts it on its ranks


class _Benchmarks(click.Group):
    """A group that imports the module of a measurement when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS + _HIDDEN:
            return None
        command = importlib.import_module(f"trtllm_pt.cli.bench_{cmd_name.replace('-', '_')}").command
        assert isinstance(command, click.Command)
        return command


@click.command("bench", cls=_Benchmarks, no_args_is_help=True)
def command() -> None:
    """Measure engines, alone or against each other, and the all-reduces between ranks.

    Each measurement is also a script for mpirun: `mpirun -n 2 python benchmarks/latency.py …`.

    \b
    Examples:
      trtllm-pt bench latency engines/demo --batch_size "1;8" --input_output_len "128,20;60,20"
      mpirun -n 2 trtllm-pt bench latency engines/demo --num_runs 5 --duration 0
    """
