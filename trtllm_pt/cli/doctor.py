"""`trtllm-pt doctor`: reports what works on this machine, and what to install for the rest."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from trtllm_pt.backends.checks import Finding, version
from trtllm_pt.backends.registry import backends
from trtllm_pt.cli.options import json_option
from trtllm_pt.cli.text import table
from trtllm_pt.errors import UsageError

_PYTHONS = ((3, 10), (3, 13))
_TRITON = Path("/opt/tritonserver/bin/tritonserver")  # the path in NVIDIA's container


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Check Python, MPI, compiler, instruction set, GPU, Triton and versions.

    The exit status is 2 if no engine can run on this machine, and 0 otherwise.

    \b
    Examples:
      trtllm-pt doctor
      trtllm-pt doctor --json | jq '.[] | select(.ok | not)'
    """
    common = [python(), tokenizers()]
    of_backends = {backend.title: [check() for check in backend.checks()] for backend in backends().values()}
    findings = [*common, *(finding for found in of_backends.values() for finding in found), triton()]
    click.echo(json.dumps([asdict(f) for f in findings], indent=2) if as_json else report(findings))
    if broken := broken_everywhere(common, of_backends):
        raise UsageError(f"no engine can run on this machine: {broken}")


def broken_everywhere(common: Sequence[Finding], of_backends: Mapping[str, Sequence[Finding]]) -> str:
    """Return why no backend can run on this machine, or an empty text if at least one can.

    common: findings that concern all backends. of_backends: the findings of each backend, by its title.
    """
    reasons = []
    for title, found in of_backends.items():
        missing = [finding.name for finding in (*common, *found) if not finding.ok and finding.essential]
        if not missing:
            return ""
        reasons.append(f"{title} lacks {', '.join(missing)}")
    return "; ".join(reasons)


def report(findings: Sequence[Finding]) -> str:
    """Return a table of the findings, with an installation hint below each that is not ok."""
    rows = []
    for f in findings:
        rows.append(("ok" if f.ok else "missing", f.name, f.found))
        if not f.ok and f.install:
            rows.append(("", "", f"  → {f.install}" + (f" (for {f.needed_for})" if f.needed_for else "")))
    return table(rows, ("", "part", "found"), left=3)


def python() -> Finding:
    """Check the version of Python."""
    least, most = _PYTHONS
    good = least <= sys.version_info[:2] <= most
    wanted = f"Python {least[0]}.{least[1]} to {most[0]}.{most[1]}"
    return Finding("Python", good, platform.python_version(), None if good else wanted)


def tokenizers() -> Finding:
    """Check that the package tokenizers is installed."""
    found = version("tokenizers")
    return Finding("tokenizers", found is not None, found or "none", "pip install tokenizers")


def triton() -> Finding:
    """Look for tritonserver on PATH, in NVIDIA's container, and in the wheel nvidia-pytriton."""
    path = shutil.which("tritonserver") or (str(_TRITON) if _TRITON.exists() else None)
    wheel = version("nvidia-pytriton")
    found = path or (f"in nvidia-pytriton {wheel}" if wheel else "none")
    return Finding("Triton", bool(path or wheel), found, "NVIDIA's tritonserver container", "serving", essential=False)
