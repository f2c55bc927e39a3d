"""The `trtllm-pt` command: finds the subcommand, turns every error into one line and an exit status."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

import click

from trtllm_pt import logs
from trtllm_pt._version import __version__
from trtllm_pt.errors import TrtllmPtError
from trtllm_pt.job.launchers import SECONDS_TO_BE_HEARD, first_on_machine, launched_rank
from trtllm_pt.job.world import World

# From a model to a running server, in this order. A command's module has its name and holds `command`, whose help
# begins with this sentence; it stands here so that the list of commands needs none of their imports.
COMMANDS = {
    "presets": "List the presets, or show one as a model config.",
    "init": "Write a checkpoint of a preset, or of your own config, with random weights.",
    "convert": "Convert a trained model to a checkpoint, one file per rank.",
    "build": "Build one engine per rank of a checkpoint.",
    "inspect": "Show what a checkpoint or an engine directory holds, and every message between its ranks.",
    "run": "Generate text from prompts.",
    "repo": "Write a Triton model repository for an engine directory.",
    "serve": "Serve engines through NVIDIA Triton, and start all their ranks.",
    "client": "Send a prompt to a server and print the answer as it arrives.",
    "plan": "Predict time to first token, time per token, throughput and memory for every schedule of a model.",
    "bench": "Measure engines, alone or against each other, and the all-reduces between ranks.",
    "doctor": "Check Python, MPI, compiler, instruction set, GPU, Triton and versions.",
}
INTERRUPTED = 130
_MISTAKE = 2


class _Commands(click.Group):
    """Imports a subcommand's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"trtllm_pt.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"unknown command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.command(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="trtllm-pt")
@click.option(
    "--log-level",
    type=click.Choice(logs.LEVELS, case_sensitive=False),
    envvar=logs.LEVEL,
    default=logs.DEFAULT_LEVEL,
    show_default=True,
    help="Log to standard error from this level on; info has a line for each request.",
)
@click.option("--log-json", is_flag=True, envvar=logs.JSON, help="Log in lines of JSON.")
@click.pass_context
def cli(ctx: click.Context, log_level: str, log_json: bool) -> None:
    """Build and run Parallel Track Transformers: one engine per rank, all-reduces only at track block boundaries.

    \b
    From a model to text, on two ranks:
      trtllm-pt convert pretrained/stdlib-pt -o build/demo --ranks 2
      trtllm-pt build build/demo -o engines/demo
      trtllm-pt run engines/demo "def binary_search("

    \b
    TRTLLM_PT_DEBUG=1 shows where an error came from.
    Exit status: 0 done, 2 a mistake in the call or something missing here,
    1 a failure while running, 130 interrupted.
    """
    logs.set_up(log_level, log_json)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, or `arguments` in its place, and leave the process."""
    run_script(lambda: cli.main(arguments, prog_name="trtllm-pt", standalone_mode=False))


def run_script(work: Callable[[], object]) -> NoReturn:
    """Do the work and leave the process with the status that it returns, if any. An error is one line on stderr, and a
    rank that fails ends the others."""
    if not _debug():
        warnings.simplefilter("ignore")  # libraries' words to developers
        os.environ.setdefault("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1")  # MPICH's words behind ours
    try:
        status = work()
    except Exception as error:
        status = _report(error)
        if (world := World.joined()) is not None:
            world.abort(status)
    # Subcommands return nothing; --help and --version give click's own status.
    sys.exit(status if isinstance(status, int) else 0)


def _debug() -> bool:
    return os.environ.get("TRTLLM_PT_DEBUG", "0") not in ("", "0")


def _report(error: Exception) -> int:
    """One line on stderr; returns the exit status."""
    if isinstance(error, click.Abort):
        return INTERRUPTED
    if _debug():
        traceback.print_exception(error)
    status, line = _status_and_line(error)
    rank = launched_rank()  # mpirun mixes the output of all
    if rank and status == _MISTAKE and _is_said_elsewhere():
        return status
    click.echo(f"Error{f' on rank {rank}' if rank else ''}: {line}", err=True)
    return status


def _is_said_elsewhere() -> bool:
    """A mistake in the call is every rank's, and one of them says it: before MPI is up the first on each machine.

    Later it may be this rank's alone. Who finds that out waits for rank 0: had that the same to say, it ends this one.
    """
    if World.joined() is None:
        return not first_on_machine()
    time.sleep(3 * SECONDS_TO_BE_HEARD)
    return False


def _status_and_line(error: Exception) -> tuple[int, str]:
    if isinstance(error, TrtllmPtError):
        return error.exit_status, _one_line(str(error))
    if isinstance(error, click.ClickException):
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
        return error.exit_code, _one_line(error.format_message()) + (f" (see `{command} --help`)" if command else "")
    if isinstance(error, OSError):
        return 1, _one_line(str(error))
    return 1, f"{_one_line(str(error))} [{type(error).__name__}: a bug; TRTLLM_PT_DEBUG=1 shows where]"


def _one_line(text: str) -> str:
    return " ".join(text.split())
