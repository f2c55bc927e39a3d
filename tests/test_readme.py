"""Documentation names every package; its links lead somewhere, and its commands parse."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

from trtllm_pt.cli.app import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_architecture_names_every_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for init in (ROOT / "trtllm_pt").rglob("__init__.py"):
        package = str(init.parent.relative_to(ROOT / "trtllm_pt"))
        assert package == "." or f"`{package}`" in page, f"docs/architecture.md does not name {package}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_commands_parse() -> None:
    context = click.Context(cli)
    commands = re.findall(r"trtllm-pt ([a-z-]+)([^#\n`]*)", README.split("## Install")[1].split("## What")[0])
    assert len(commands) >= 8
    for name, rest in commands:
        command = cli.get_command(context, name)
        if isinstance(command, click.Group):
            name, *_ = rest.split()
            command = command.get_command(context, name)
        assert command is not None, name
        flags = {flag for option in command.params for flag in option.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", rest)) <= flags, rest


def test_python_compiles() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    ast.parse(example)
