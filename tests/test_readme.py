"""The README names the files that are there, links that lead somewhere, and commands that parse."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from trtllm_pt.cli.app import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def tree() -> set[str]:
    """Files below trtllm_pt/ in the README's tree, by their indentation."""
    found, folder = set(), ""
    lines = README.split("    trtllm_pt/\n")[1].splitlines()
    for line in lines:
        indent, name = len(line) - len(line.lstrip()), line.split()[0] if line.split() else ""
        if indent < 6:
            return found
        if name.endswith("/"):
            folder = name
        else:
            found.add(name if indent == 6 else folder + name)
    raise AssertionError("the tree does not end")


def test_tree_has_every_file() -> None:
    files = (path for path in (ROOT / "trtllm_pt").rglob("*") if path.suffix in (".py", ".cpp", ".h"))
    there = {str(path.relative_to(ROOT / "trtllm_pt")) for path in files if not path.name.startswith("__")}
    assert tree() == there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_commands_parse() -> None:
    context = click.Context(cli)
    commands = re.findall(r"trtllm-pt ([a-z]+)([^#\n`]*)", README.split("## Install")[1].split("## What")[0])
    assert len(commands) >= 8
    for name, rest in commands:
        command = cli.get_command(context, name)
        assert command is not None, name
        flags = {flag for option in command.params for flag in option.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", rest)) <= flags, rest


def test_python_compiles() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    ast.parse(example)
