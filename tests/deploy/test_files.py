"""Scripts, Dockerfiles and the compose file of deploy, as far as their tools are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "deploy"
SCRIPTS = sorted([*FOLDER.glob("**/*.sh"), *FOLDER.glob("slurm/*.sbatch")])
DOCKERFILES = sorted(FOLDER.glob("docker/*.Dockerfile"))


def lint(*command: str | Path) -> None:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed: make deploy-check installs it")
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_shellcheck_accepts_the_scripts() -> None:
    assert len(SCRIPTS) == 5
    lint("shellcheck", *SCRIPTS)


def test_hadolint_accepts_the_dockerfiles() -> None:
    assert len(DOCKERFILES) == 2
    lint("hadolint", "--config", FOLDER / "docker" / ".hadolint.yaml", *DOCKERFILES)


def test_the_compose_file_has_the_replicas_and_ports_of_the_proxy() -> None:
    yaml = pytest.importorskip("yaml")
    proxy = (FOLDER / "proxy" / "haproxy.cfg").read_text()
    services = yaml.safe_load((FOLDER / "docker" / "compose.yaml").read_text())["services"]
    assert set(services) == {*re.findall(r"^    server (\w+)", proxy, re.MULTILINE), "proxy"}
    assert set(services["proxy"]["depends_on"]) == set(services) - {"proxy"}
    bound = set(re.findall(r"^    bind :(\d+)", proxy, re.MULTILINE))
    assert {port.split(":")[-1] for port in services["proxy"]["ports"]} == bound
    for name in services["proxy"]["depends_on"]:
        drain = int(services[name]["command"][services[name]["command"].index("--drain-seconds") + 1])
        assert int(services[name]["stop_grace_period"].removesuffix("s")) >= drain + 30
