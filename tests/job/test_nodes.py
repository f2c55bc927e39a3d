"""The comparison of machines, and the addresses between them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from trtllm_pt.errors import MachineError, UsageError
from trtllm_pt.job import interface
from trtllm_pt.job.interface import INTERFACE, bind_mpi, own_address
from trtllm_pt.job.last_words import with_machine
from trtllm_pt.job.nodes import check_same, file_digests, ranks_beside
from trtllm_pt.job.world import World


class Ranks(World):
    """A world of two ranks on `a` and two on `b`, whose facts are given."""

    def __init__(self, *facts: dict[str, str]) -> None:
        super().__init__(None)
        self._facts = facts

    def gather_all(self, value: Any) -> list[Any]:
        a, b = self._facts
        return [("a", a), ("a", {}), ("b", b), ("b", {})]


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ({"torch": "version 2"}, {"torch": "version 2"}, None),
        (
            {"torch": "version 2"},
            {"torch": "version 3"},
            "b has version 3 for torch, but a has version 2: all machines",
        ),
        ({"/e/config.json": "x"}, {}, "b has nothing for /e/config.json, but a has x: all machines"),
        ({}, {"/e/tokenizer/x": "x"}, "b has x for /e/tokenizer/x, but a has nothing: all machines"),
        ({"/e/rank0.safetensors": "x"}, {"/e/rank2.safetensors": "y"}, None),  # each has the files of its own ranks
        ({"/e/rank0.safetensors": "x"}, {"/e/rank0.safetensors": "y"}, "b has y for /e/rank0.safetensors, but a has x"),
    ],
)
def test_the_machine_that_differs_is_named(a: dict[str, str], b: dict[str, str], said: str | None) -> None:
    if said is None:
        check_same(Ranks(a, b), [[0, 1], [2, 3]], a)
        return
    with pytest.raises(MachineError) as error:
        check_same(Ranks(a, b), [[0, 1], [2, 3]], a)
    assert str(error.value).startswith(said)


def test_the_ranks_beside_one_are_those_of_its_own_machine() -> None:
    nodes = [[0, 1, 4], [2], [3]]
    assert [list(ranks_beside(rank, nodes)) for rank in range(5)] == [[0, 1, 4], [0, 1, 4], [2], [3], [0, 1, 4]]


def test_a_digest_sees_each_byte_of_a_small_file_and_the_size_of_a_large_one(tmp_path: Path) -> None:
    small, large = tmp_path / "tokenizer" / "small", tmp_path / "large"
    small.parent.mkdir()
    small.write_bytes(bytes(1000))
    with large.open("wb") as file:
        file.truncate(1 << 27)
    before = file_digests(tmp_path)
    assert list(before) == [str(large), str(small)]
    small.write_bytes(bytes(999) + b"1")
    with large.open("r+b") as file:
        file.truncate((1 << 27) + 1)
    after = file_digests(tmp_path)
    assert all(before[name] != after[name] for name in before)
    with large.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"1")
    assert file_digests(tmp_path)[str(large)] != after[str(large)]


def test_an_error_names_its_machine_only_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtllm_pt.job.last_words.several_machines", lambda: True)
    host = socket.gethostname()
    assert with_machine(UsageError("no engines")) == f"{host}: no engines"
    assert with_machine(MachineError("b has none")) == "b has none"
    monkeypatch.setattr("trtllm_pt.job.last_words.several_machines", lambda: False)
    assert with_machine(UsageError("no engines")) == "no engines"


@pytest.mark.parametrize(
    ("several", "asked", "devices"),
    [(False, None, "lo"), (False, "eth1", "lo"), (True, "eth1", "eth1"), (True, None, None)],
)
def test_mpi_listens_where_it_was_asked_to(
    several: bool, asked: str | None, devices: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("UCX_NET_DEVICES", "FI_TCP_IFACE", INTERFACE):
        monkeypatch.setenv(variable, "")  # so that what is set is undone
        monkeypatch.delenv(variable)
    if asked is not None:
        monkeypatch.setenv(INTERFACE, asked)
    monkeypatch.setattr(interface, "several_machines", lambda: several)
    bind_mpi()
    assert os.environ.get("UCX_NET_DEVICES") == os.environ.get("FI_TCP_IFACE") == devices
    monkeypatch.setenv("UCX_NET_DEVICES", "mlx5_0:1")
    bind_mpi()
    assert os.environ["UCX_NET_DEVICES"] == "mlx5_0:1"


def test_an_interface_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERFACE, "none7")
    with pytest.raises(MachineError, match=rf"^--interface \(none7\): {socket.gethostname()} has no such interface"):
        own_address()
