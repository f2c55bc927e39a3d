"""The options that start ranks on several machines. They reach the processes of a command through the environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from trtllm_pt.errors import UsageError
from trtllm_pt.job.hosts import HOSTS, parse_hosts, read_hostfile
from trtllm_pt.job.interface import INTERFACE
from trtllm_pt.job.launchers import launched_ranks, launcher_name


def hosts_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --hosts, --hostfile and --interface to a command that starts ranks."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _use_hosts(context: click.Context, option: click.Parameter, text: str | None) -> None:
    if text is not None:
        _use(parse_hosts(text), "--hosts", context)


def _use_hostfile(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    if path is not None:
        _use(read_hostfile(path), "--hostfile", context)


def _use(slots: dict[str, int], option: str, context: click.Context) -> None:
    if HOSTS in context.meta:
        raise UsageError("--hosts and --hostfile cannot both be given")
    text = ",".join(f"{host}:{count}" for host, count in slots.items())
    # A command that starts itself again on the hosts is a rank then, with the same options.
    if launched_ranks() is not None and os.environ.get(HOSTS) != text:
        raise UsageError(f"{option} starts ranks, but {launcher_name()} has started them: give it the hosts instead")
    os.environ[HOSTS] = text
    context.meta[HOSTS] = True


def _use_interface(context: click.Context, option: click.Parameter, name: str | None) -> None:
    if name is not None:
        os.environ[INTERFACE] = name


_OPTIONS = (
    click.option(
        "--hosts",
        metavar="HOST:SLOTS[,…]",
        expose_value=False,
        callback=_use_hosts,
        help="Start the ranks on these hosts over ssh, at most SLOTS on each; the first is this machine.",
    ),
    click.option(
        "--hostfile",
        metavar="FILE",
        type=click.Path(path_type=Path),
        expose_value=False,
        callback=_use_hostfile,
        help="Read the hosts from a file with a line HOST:SLOTS or HOST slots=SLOTS for each.",
    ),
    click.option(
        "--interface",
        metavar="NAME",
        expose_value=False,
        callback=_use_interface,
        help="Network interface for the messages between hosts, such as eth0.  [default: MPI chooses]",
    ),
)
