"""The `trtllm-pt` command: it finds the subcommand, and turns every error into one line and an exit status."""

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
from trtllm_pt.errors import TrtllmPtError, UsageError
from trtllm_pt.job.last_words import with_machine
from trtllm_pt.job.launchers import SECONDS_TO_BE_HEARD, first_on_machine, launched_rank, several_machines
from trtllm_pt.job.world import World, import_mpi

# The commands, in the order in which a user needs them, from a model to a running server. The module of a command has
# the command's name, with underscores, and defines `command`. The first sentence of its help is repeated here so that
# listing the commands does not import their modules.
COMMANDS = {
    "presets": "List the presets, or print one of them as a model config.",
    "init": "Write a checkpoint of random weights for a preset or a config file.",
    "convert": "Convert a trained model to a checkpoint with one file per rank.",
    "export": "Write a checkpoint, engines or a model as a directory for transformers and convert.",
    "build": "Build an engine for each rank of a checkpoint.",
    "inspect": "Show the model in a checkpoint or an engine directory, and every message between its ranks.",
    "run": "Generate text from prompts.",
    "eval": "Measure how well engines predict text: bits per byte, perplexity and top-1 accuracy.",
    "repo": "Write a Triton model repository for an engine directory.",
    "serve": "Serve engines through NVIDIA Triton, and start all their ranks.",
    "client": "Send a prompt to a server and print the answer as it arrives.",
    "spd": "Let a dense model synchronise less: Sync-Point Drop (SPD).",
    "convert-to-pt": "Convert a dense model to a Parallel Track model, by distillation.",
    "convert-to-dtp": "Convert a dense model to delayed tensor parallelism, by distillation.",
    "plan": "Predict time to first token, time per token, throughput and memory for every schedule of a model.",
    "bench": "Measure engines, alone or against each other, and the all-reduces between ranks.",
    "doctor": "Check Python, MPI, compiler, instruction set, GPU, Triton and versions.",
}
INTERRUPTED = 130
_MISTAKE = 2


class _Commands(click.Group):
    """A group that imports the module of a subcommand only when the subcommand is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"trtllm_pt.cli.{cmd_name.replace('-', '_')}").command
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
            hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(COMMANDS)}"
            raise click.UsageError(f"unknown command {args[0]!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.command(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        # Options of TensorRT-LLM are written --batch_size, our own are written --max-tokens. All accept both spellings.
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)
@click.version_option(__version__, prog_name="trtllm-pt")
@click.option(
    "--log-level",
    type=click.Choice(logs.LEVELS, case_sensitive=False),
    envvar=logs.LEVEL,
    default=logs.DEFAULT_LEVEL,
    show_default=True,
    help="Lowest level of log messages on standard error; info logs every request.",
)
@click.option("--log-json", is_flag=True, envvar=logs.JSON, help="Log one JSON object per line.")
@click.pass_context
def cli(ctx: click.Context, log_level: str, log_json: bool) -> None:
    """Build and run Parallel Track Transformers: one engine per rank, all-reduces only at track block boundaries.

    \b
    From a model to text, on two ranks:
      trtllm-pt convert pretrained/stdlib-pt -o build/demo --ranks 2
      trtllm-pt build build/demo -o engines/demo
      trtllm-pt run engines/demo "def binary_search("

    \b
    TRTLLM_PT_DEBUG=1 prints the traceback of an error.
    Exit status: 0 success, 1 failure while running,
    2 usage error or missing dependency, 130 interrupted.
    """
    logs.set_up(log_level, log_json)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line of this process, or `arguments` if given, and exit the process."""
    run_script(lambda: cli.main(arguments, prog_name="trtllm-pt", standalone_mode=False))


def run_script(work: Callable[[], object]) -> NoReturn:
    """Call `work` and exit the process, with the status that it returns or 0.

    An error is printed as one line on stderr and determines the status. If this process is one of several ranks, an
    error aborts all of them.
    """
    if not _debug():
        warnings.simplefilter("ignore")  # libraries warn developers, not users
        os.environ.setdefault("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1")  # MPICH would print a message after ours
    try:
        status = work()
    except Exception as error:
        status = _report(error)
        if (world := World.joined() or _other_machines()) is not None:
            world.abort(status)
    # Subcommands return nothing; --help and --version give click's own status.
    sys.exit(status if isinstance(status, int) else 0)


def _other_machines() -> World | None:
    """Join MPI if ranks on other machines may wait there for this one, which has failed before it joined."""
    if not several_machines():
        return None
    try:
        return World(import_mpi("").COMM_WORLD)
    except UsageError:  # this machine has no MPI
        return None


def _debug() -> bool:
    return os.environ.get("TRTLLM_PT_DEBUG", "0") not in ("", "0")


def _report(error: Exception) -> int:
    """Print an error as one line on stderr. Returns the exit status."""
    if isinstance(error, click.Abort):
        return INTERRUPTED
    if _debug():
        traceback.print_exception(error)
    status, line = _status_and_line(error)
    rank = launched_rank()  # printed because mpirun mixes the output of all ranks
    if rank and status == _MISTAKE and _another_rank_reports():
        return status
    click.echo(f"Error{f' on rank {rank}' if rank else ''}: {line}", err=True)
    return status


def _another_rank_reports() -> bool:
    """Return whether another rank reports the usage error that this rank has found.

    All ranks find the same usage error, and only one should print it. Before MPI starts, it is the first rank on each
    machine. After that the error may be specific to this rank, so this rank waits: if rank 0 has the same error, rank 0
    prints it and aborts this rank in the meantime.
    """
    if World.joined() is None:
        return not first_on_machine()
    time.sleep(3 * SECONDS_TO_BE_HEARD)
    return False


def _status_and_line(error: Exception) -> tuple[int, str]:
    if isinstance(error, TrtllmPtError):
        return error.exit_status, _one_line(with_machine(error))
    if isinstance(error, click.ClickException):
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else None
        return error.exit_code, _one_line(error.format_message()) + (f" (see `{command} --help`)" if command else "")
    if isinstance(error, OSError):
        return 1, _one_line(str(error))
    return 1, f"{_one_line(str(error))} [{type(error).__name__}: this is a bug; TRTLLM_PT_DEBUG=1 prints the traceback]"


def _one_line(text: str) -> str:
    return " ".join(text.split())
