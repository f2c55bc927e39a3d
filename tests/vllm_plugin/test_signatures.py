"""The plugin against the names and signatures of the releases of vLLM that it supports, without vLLM."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.vllm_plugin.api import FIELDS, PLUGIN, Signatures, all_imported, imported
from trtllm_pt import vllm_plugin

RELEASES: dict[str, Signatures] = json.loads((Path(__file__).parent / "api.json").read_text())
ROOT = Path(__file__).parents[2]


def calls(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The functions and classes of vLLM that a file calls, by their dotted names, and the keywords of each call."""
    tree = ast.parse(path.read_text())
    names = {local: f"{module}.{name}" for module, name, local in imported(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names:
            yield names[ast.unparse(node.func)], [word.arg for word in node.keywords if word.arg]


def test_releases() -> None:
    assert {release.rpartition(".")[0] for release in RELEASES} == set(vllm_plugin.TESTED)


@pytest.mark.parametrize("release", RELEASES)
def test_every_name_is_there(release: str) -> None:
    assert not all_imported() - set(RELEASES[release])


@pytest.mark.parametrize("release", RELEASES)
def test_every_keyword_is_a_parameter(release: str) -> None:
    called = [call for path in PLUGIN.glob("*.py") for call in calls(path)]
    assert len({name for name, keywords in called if keywords}) >= 4
    for name, keywords in called:
        known = RELEASES[release][name]
        assert known is None or set(keywords) <= set(known), name


@pytest.mark.parametrize("release", RELEASES)
def test_every_field_is_there(release: str) -> None:
    for place, fields in FIELDS.items():
        assert set(fields) <= set(RELEASES[release][place.partition(":")[2]] or ())


def test_undivided_options_are_fields_of_vllm() -> None:
    tree = ast.parse((PLUGIN / "checks.py").read_text())
    values = {
        node.targets[0].id: node.value  # type: ignore[attr-defined]
        for node in tree.body
        if isinstance(node, ast.Assign)
    }
    for known in RELEASES.values():
        assert set(ast.literal_eval(values["_UNDIVIDED"])) <= set(known["ParallelConfig"] or ())


def test_entry_point() -> None:
    """vLLM finds the plugin by this; an environment that was installed before it lacks it until `pip install -e .`."""
    assert 'parallel_track = "trtllm_pt.vllm_plugin:register"' in (ROOT / "pyproject.toml").read_text()
    for found in entry_points(group="vllm.general_plugins", name="parallel_track"):
        assert found.load() is vllm_plugin.register
