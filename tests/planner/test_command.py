"""`trtllm-pt plan` as users call it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from trtllm_pt.cli.plan import command
from trtllm_pt.errors import UsageError
from trtllm_pt.model.presets import preset
from trtllm_pt.planner import load_machine


def run(*arguments: str) -> str:
    done = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_golden_table() -> None:
    found = run("pt-tiny", "--ranks", "2", "--engine", "gpt_fast", "--input", "128", "--output", "16")
    assert found == (Path(__file__).parent / "pt-tiny.txt").read_text()


def test_json() -> None:
    found = json.loads(run("dense-6b", "--machine", "8xA100", "-g", "4", "--concurrency", "8", "--json"))
    assert found["machine"] == "8xA100"
    assert found["predictions"][0]["name"] == "tp"
    names = [each["name"] for each in found["predictions"]]
    assert names == ["tp", "parallel", "ladder", "spd 32", "desync 1", "desync 2", "desync 4", "dtp 1", "dtp 2"] + [
        f"pt D={depth}" for depth in (1, 2, 4, 8)
    ]
    assert found["recommended"] in names
    for each in found["predictions"]:
        assert each["ttft_s"] > 0
        assert 0 <= each["decode_all_reduce_share"] < 1


def test_config_and_machine_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(preset("pt-150m").to_json()))
    machine = load_machine("8xH100").to_json() | {"name": "mine", "devices": 4}
    (tmp_path / "mine.json").write_text(json.dumps(machine))
    by_file = run(str(tmp_path / "config.json"), "--machine", str(tmp_path / "mine.json"))
    by_folder = run(str(tmp_path), "--machine", str(tmp_path / "mine.json"))
    assert "4 of mine" in by_file
    assert by_file.splitlines()[1:] == by_folder.splitlines()[1:]


def test_overrun_and_too_big(tmp_path: Path) -> None:
    assert "overloaded" in run("pt-30b", "--request-rate", "500")
    machine = load_machine("8xH100").to_json() | {"memory_bytes": 1e9}
    (tmp_path / "small.json").write_text(json.dumps(machine))
    found = run("pt-30b", "--machine", str(tmp_path / "small.json"))
    assert "too big" in found
    assert "Recommended: none" in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MODEL is missing"),
        (["pt-6b", "--validate"], "--validate.* MODEL"),
        (["pt-6b", "--concurrency", "2", "--request-rate", "3"], "--concurrency and --request-rate"),
        (["pt-6b", "--machine", "8xH1000"], "unknown machine '8xH1000'; did you mean '8xH100'"),
        (["pt-6b", "--engine", "x"], "'x' is not one of 'tensorrt_llm'"),
        (["pt-7b"], "unknown preset 'pt-7b'"),
        (["none.json"], "there is no none.json"),
        (["pt-6b", "--plot", "plan.pdf"], r"--plot \(plan.pdf\) must end in .png or .svg"),
        (["pt-6b", "--plot", "nowhere/plan.png"], r"--plot \(nowhere/plan.png\).*folder nowhere"),
        (["pt-6b", "--request-rate", "-1"], r"request_rate \(-1\) must be above 0"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises((UsageError, click.UsageError), match=message):
        command.main(arguments, standalone_mode=False)


def test_validate() -> None:
    found = run("--validate")
    assert len(re.findall(r"^Table \d+: .*: PT$", found, re.MULTILINE)) == 6
    assert "Held out" in found
    assert len(json.loads(run("--validate", "--json"))["tables"]) == 6


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plots(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[ending]
    for name, arguments in {"plan": ["pt-6b"], "tables": ["--validate"]}.items():
        path = tmp_path / f"{name}.{ending}"
        run(*arguments, "--plot", str(path))
        assert path.read_bytes().startswith(start)
