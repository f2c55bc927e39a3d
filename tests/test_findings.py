"""The scripts of findings/ are well-formed. Nothing here runs them: they install packages and take minutes."""

import os
import re
import subprocess
from pathlib import Path

import pytest

FINDINGS = Path(__file__).parent.parent / "findings"
SCRIPTS = sorted(FINDINGS.glob("*.sh"))


def test_readme_lists_every_script_once() -> None:
    listed = re.findall(r"^\| \[(\S+)\]\((\S+)\) \|", (FINDINGS / "README.md").read_text(), re.MULTILINE)
    assert listed == [(script.name, script.name) for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_is_well_formed(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert re.search(r'"[\w-]+==\d[\w.]*"', script.read_text())
