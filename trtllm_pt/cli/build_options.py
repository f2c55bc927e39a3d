"""The options of `trtllm-pt build`: the common ones, with trtllm-build's names, and those that backends add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from trtllm_pt.backends import backends
from trtllm_pt.backends.backend import BuildOption
from trtllm_pt.cli.options import Decorator

# Name (and an alternative name in trtllm-build), default as text, help.
_COMMON = (
    (("max_batch_size",), "16", "Maximum number of requests in flight."),
    (("max_input_len",), "max_seq_len - 1", "Maximum tokens of a prompt."),
    (("max_seq_len", "max_decoder_seq_len"), "the model's positions", "Maximum tokens of a prompt and its output."),
    (("max_num_tokens",), "2048", "Maximum tokens of a step, over all requests."),
)
COMMON = tuple(names[0] for names, _, _ in _COMMON)


def build_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add all build options to a command. Backend options without a help text appear only in the epilog."""
    for option, owners in reversed(_backend_options()):
        command = _declare(", ".join(owners), option)(command)
    for names, default, text in reversed(_COMMON):
        flags = [f"--{name}" for name in names]
        size = click.IntRange(min=1)
        command = click.option(*flags, names[0], type=size, help=f"{text}  [default: {default}]")(command)
    return command


def _backend_options() -> list[tuple[BuildOption, list[str]]]:
    """Return each option with the backends that have it. Options of one name are described by the first backend."""
    found: dict[str, tuple[BuildOption, list[str]]] = {}
    for backend in backends().values():
        for option in backend.options:
            same, owners = found.setdefault(option.name, (option, []))
            assert same.type == option.type, f"--{option.name} has another type in {backend.name} than in {owners}"
            owners.append(backend.name)
    return list(found.values())


def epilog() -> str:
    """Return the last lines of the command's help: the backend options that its list of options leaves out."""
    lines = []
    for backend in backends().values():
        if names := [f"--{option.name}" for option in backend.options if not option.help]:
            lines.append(f"Other options for --engine {backend.name}: {' '.join(names)}")
    return "\n\n".join(lines)


def _declare(owners: str, option: BuildOption) -> Decorator:
    flags = [f"--{name}" for name in (option.name, *option.aliases)]
    text, hidden = f"{option.help}  [{owners}]", option.help is None
    if option.type is bool:
        return click.option(*flags, option.name, is_flag=True, default=None, help=text, hidden=hidden)
    kind = click.Choice(option.type) if isinstance(option.type, tuple) else option.type
    return click.option(*flags, option.name, type=kind, help=text, hidden=hidden)
