"""Prints docs/cli.md, made from the commands: `python -m trtllm_pt.cli.docs > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from trtllm_pt.cli.app import cli

_HEAD = """\
# The command line

Made from the commands by `python -m trtllm_pt.cli.docs > docs/cli.md`; a test fails where this page is stale.
"""


def page() -> str:
    return "\n".join([_HEAD, *_sections()])


def _sections() -> Iterator[str]:
    top = cli.make_context("trtllm-pt", [], resilient_parsing=True, terminal_width=100)
    yield _section("trtllm-pt", cli.get_help(top))
    yield from _subcommands("trtllm-pt", cli, top)


def _subcommands(title: str, group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        own = click.Context(command, context, name, terminal_width=100)
        yield _section(f"{title} {name}", command.get_help(own))
        if isinstance(command, click.Group):
            yield from _subcommands(f"{title} {name}", command, own)


def _section(title: str, text: str) -> str:
    body = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```\n{body}\n```\n"


if __name__ == "__main__":
    print(page(), end="")
