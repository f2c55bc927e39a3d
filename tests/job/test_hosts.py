"""Hosts for mpirun: how they are written, what is refused, and the options that mpirun gets."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from trtllm_pt._version import __version__
from trtllm_pt.cli.hosts_options import hosts_options
from trtllm_pt.errors import UsageError
from trtllm_pt.job.hosts import HOSTS, Hosts, parse_hosts, read_hostfile
from trtllm_pt.job.interface import INTERFACE
from trtllm_pt.job.mpirun import launch

HERE = socket.gethostname()


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("a:4,b:4", {"a": 4, "b": 4}),
        ("a, b:2", {"a": 1, "b": 2}),
        ("a:1,b:1,a:2", {"a": 3, "b": 1}),
        ("10.0.0.1:8", {"10.0.0.1": 8}),
    ],
)
def test_a_list_of_hosts(text: str, slots: dict[str, int]) -> None:
    assert parse_hosts(text) == slots


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "--hosts ('') must be HOST or HOST:SLOTS"),
        ("a,,b", "--hosts ('') must be"),
        ("a:0", "--hosts ('a:0'): the slots of a must be a number from 1"),
        ("a:x", "--hosts ('a:x'): the slots of a must be a number from 1"),
        ("a:²", "--hosts ('a:²'): the slots of a must be a number from 1"),
        ("-oProxyCommand=x:1", "--hosts ('-oProxyCommand=x:1') must be"),
        ("a;b:1", "--hosts ('a;b:1') must be"),
        ("user@a:1", "--hosts ('user@a:1') must be"),
    ],
)
def test_what_is_no_list_of_hosts(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_hosts(text)
    assert str(error.value).startswith(said)


def test_a_hostfile_of_either_mpi(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("# the rack\na:4\n\nb slots=2  # half\nc slots = 1\nd\ne\tslots=3\n")
    assert read_hostfile(file) == {"a": 4, "b": 2, "c": 1, "d": 1, "e": 3}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\nb cpus=4\n", "{file}, line 2 ('b cpus=4') must be HOST, HOST:SLOTS or HOST slots=SLOTS"),
        ("a slots=none\n", "{file}, line 1 ('a:none'): the slots of a must be a number from 1"),
        ("# none\n", "--hostfile ({file}) names no host"),
        (None, "--hostfile ({file}) cannot be read: No such file or directory"),
        (b"\xff", "--hostfile ({file}) cannot be read: it is not text"),
    ],
)
def test_what_is_no_hostfile(content: str | bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError) as error:
        read_hostfile(file)
    assert str(error.value) == said.format(file=file)


def program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("HYDRA build details:", ["-launcher", "ssh", "-hosts", "a:4,b:2", "-iface", "eth1"]),
        (
            "mpirun (Open MPI) 4.1.4",
            ["--host", "a:4,b:2"] + ["--mca", "btl_tcp_if_include", "eth1", "--mca", "oob_tcp_if_include", "eth1"],
        ),
    ],
    ids=["MPICH", "Open MPI"],
)
def test_the_options_of_mpirun(version: str, options: list[str], tmp_path: Path) -> None:
    mpirun = program(tmp_path / "mpirun", f"echo '{version}'")
    made = launch(mpirun, (6, ["python"]), hosts=Hosts({"a": 4, "b": 2}, "eth1"), environment={})
    assert made.command == [mpirun, *options, "-n", "6", "python"]


@pytest.mark.parametrize(
    ("slots", "ssh", "said"),
    [
        ({HERE: 1, "b": 2}, "", "--hosts: 4 ranks are needed, but there is room for 3: {here} has 1, b has 2"),
        ({"a..b": 4}, "", "--hosts (a..b): the first host must be this machine, {here}, because"),
        ({"b.invalid": 4}, "", "--hosts (b.invalid): the first host must be this machine, {here}, because"),
        (
            {HERE: 2, "b": 2},
            "echo 'ssh: Could not resolve hostname b' >&2; exit 255",
            "b cannot be reached: ssh: Could not resolve hostname b; `ssh b true` must work without a password",
        ),
        (
            {HERE: 2, "b": 2},
            "echo \"ModuleNotFoundError: No module named 'trtllm_pt'\" >&2; exit 1",
            "b cannot run a rank: ModuleNotFoundError: No module named 'trtllm_pt'; install trtllm_pt there as here, "
            "with Python at {python}",
        ),
        (
            {HERE: 2, "b": 2},
            "echo welcome to b; echo trtllm_pt has version 0.0.9",
            "b has trtllm_pt 0.0.9, but this machine has {version}: install the same version on both",
        ),
        (
            {HERE: 2, "b": 2},
            f"echo version {__version__}; echo This account is not available.",
            "b cannot run a rank: over ssh it starts no Python, but prints 'This account is not available.'",
        ),
        (
            {HERE: 2, "b": 2, "unused": 8},
            f"test $6 = b && echo version 12 of the operating system && echo trtllm_pt has version {__version__}",
            None,
        ),
        ({HERE: 4, "b": 2}, "exit 255", None),
    ],
    ids=["slots", "no name", "first", "unknown", "not installed", "version", "no shell", "good", "not needed"],
)
def test_hosts_are_checked(
    slots: dict[str, int], ssh: str, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "ssh", ssh)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    if said is None:
        Hosts(slots).check(4)
        return
    with pytest.raises(UsageError) as error:
        Hosts(slots).check(4)
    assert str(error.value).startswith(said.format(here=HERE, python=sys.executable, version=__version__))


@click.command
@hosts_options
def print_hosts() -> None:
    click.echo(f"{os.environ.get(HOSTS)} {os.environ.get(INTERFACE)}")


@pytest.mark.parametrize(
    ("arguments", "launcher", "said"),
    [
        ([], {}, "None None"),
        (["--hosts", "a:4,b", "--interface", "eth1"], {}, "a:4,b:1 eth1"),
        (["--hostfile", "F"], {}, "c:2 None"),
        (["--hosts", "a", "--hostfile", "F"], {}, "--hosts and --hostfile cannot both be given"),
        (["--hostfile", "F", "--hosts", "a"], {}, "--hosts and --hostfile cannot both be given"),
        (["--hosts", "a"], {"PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}, "--hosts starts ranks, but MPICH's mpirun has"),
        (["--hosts", "a"], {"PMI_SIZE": "2", "SLURM_STEP_NUM_NODES": "2"}, "--hosts starts ranks, but srun has"),
        (["--hosts", "a"], {"PMI_SIZE": "2", HOSTS: "a:1"}, "a:1 None"),  # as a rank of the same command
    ],
)
def test_the_options_of_a_command(
    arguments: list[str], launcher: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "F").write_text("c:2\n")
    monkeypatch.chdir(tmp_path)
    for variable in (HOSTS, INTERFACE):
        monkeypatch.setenv(variable, "")  # so that what the command sets is undone
        monkeypatch.delenv(variable)
    for variable, value in launcher.items():
        monkeypatch.setenv(variable, value)
    done = CliRunner().invoke(print_hosts, arguments)
    assert (str(done.exception) if done.exception else done.output).startswith(said)
