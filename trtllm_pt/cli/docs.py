"""Prints docs/cli.md, made from the commands: `python -m trtllm_pt.cli.docs > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from trtllm_pt.cli.app import COMMANDS, cli

_HEAD = """\
# The command line

Made from the commands by `python -m trtllm_pt.cli.docs > docs/cli.md`; a test fails where this page is stale.
"""


def page() -> str:
    return "\n".join([_HEAD, *_sections()])


def _sections() -> Iterator[str]:
    top = cli.make_context("trtllm-pt", [], resilient_parsing=True, terminal_width=100)
    yield _section("trtllm-pt", cli.get_help(top))
    for name in COMMANDS:
        command = cli.get_command(top, name)
        assert command is not None
        yield _section(f"trtllm-pt {name}", command.get_help(click.Context(command, top, name, terminal_width=100)))


def _section(title: str, text: str) -> str:
    body = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```\n{body}\n```\n"


if __name__ == "__main__":
    print(page(), end="")
