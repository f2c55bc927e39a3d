"""`trtllm-pt spd`: the group of the commands for Sync-Point Drop."""

from __future__ import annotations

import importlib

import click

COMMANDS = ("analyse", "distil")


class _Commands(click.Group):
    """A group that imports the module of a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"trtllm_pt.cli.spd_{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


@click.command("spd", cls=_Commands, no_args_is_help=True)
def command() -> None:
    """Let a dense model synchronise less: Sync-Point Drop (SPD).

    SPD (arXiv:2502.20727) removes the all-reduce after attention in the layers that can bear it. docs/spd.md explains
    it.

    \b
    Examples:
      trtllm-pt spd analyse ~/models/llama-1b --ranks 4 --text ~/texts -o build/llama-spd
      trtllm-pt spd distil ~/models/llama-1b --ranks 4 --text ~/texts --drop 3-15 -o build/llama-spd
      trtllm-pt convert build/llama-spd -o build/llama --ranks 4
    """
