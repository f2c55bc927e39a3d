"""Conversions from end to end: what they write and report, how they go on after an interruption, what they refuse."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.configs import EVERYTHING, PRETRAINED
from tests.spd.models import save_dense
from tests.spd.test_analyse import Killed
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.cli.app import main
from trtllm_pt.conversion.convert import _doubling, to_dtp, to_pt
from trtllm_pt.conversion.distil import Distillation, divergence
from trtllm_pt.spd.learning import Recipe
from trtllm_pt.spd.windows import read_windows

RECIPE = Recipe(steps=30, learning_rate=3e-3, batch_tokens=64, seed=3)


def test_what_grows_is_doubled() -> None:
    assert [_doubling(last) for last in (1, 2, 3, 4, 6, 8)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4],
        [1, 2, 4, 6],
        [1, 2, 4, 8],
    ]


@pytest.mark.parametrize("way", ["pt", "dtp"])
def test_the_model_that_is_written_is_the_one_that_was_measured(
    way: str, model: Path, text: Path, tmp_path: Path
) -> None:
    output, convert = tmp_path / way, to_pt if way == "pt" else to_dtp
    found = convert(model, output, 4, 3, [text], recipe=RECIPE, window=16, progress=False)
    assert list((tmp_path / "cache" / "spd").iterdir()) == []
    assert (found.schedule, found.tracks, found.windows, found.held_out_windows) == (way, 4, 19, 6)
    assert (found.stages, found.tokens) == (((1, 7), (2, 15), (3, 30)), 30 * 64)
    config = json.loads((output / "config.json").read_text())
    assert (config["schedule"], config["tracks"], config["block_depth"], config["delay"]) == (
        (way, 4, 3, None) if way == "pt" else (way, 4, None, 3)
    )
    assert (output / "tokenizer.json").read_text() == (model / "tokenizer.json").read_text()
    windows = read_windows(open_source(output), [text], 16, 65536)[19:]
    want, got = load_reference(model), load_reference(output)
    with torch.no_grad():
        target, logits = want(windows[:, :-1]), got(windows[:, :-1])
    for found_perplexity, of in ((found.perplexity, target), (found.perplexity_after, logits)):
        nats = F.cross_entropy(of.flatten(0, 1), windows[:, 1:].flatten())
        assert found_perplexity == pytest.approx(math.exp(nats), rel=1e-4)
    assert found.divergence_after == pytest.approx(divergence(logits, target).item(), rel=1e-3)
    assert found.divergence_after < 0.9 * found.divergence_before
    assert len({found.perplexity, found.perplexity_before, found.perplexity_after}) == 3


def test_a_killed_conversion_ends_with_the_same_weights(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(output: Path, most: float = math.inf) -> tuple[int, str | None, dict[str, torch.Tensor]]:
        """The steps that are made until the command is killed, or all of them, the report, and the weights."""
        made = 0
        logits = Distillation._logits

        def count(self: Distillation, student: torch.nn.Module, rows: torch.Tensor) -> Sequence[torch.Tensor]:
            nonlocal made
            if torch.is_grad_enabled():
                if made >= most:
                    raise Killed
                made += 1
            return logits(self, student, rows)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(Distillation, "_logits", count)
            try:
                report = to_pt(model, output, 4, 2, [text], recipe=RECIPE, window=16, progress=False)
            except Killed:
                assert not output.exists()
                return made, None, {}
        return made, json.dumps(report.to_json()), dict(load_reference(output).named_parameters())

    monkeypatch.setenv("TRTLLM_PT_CACHE", str(tmp_path / "whole"))
    whole, report, want = run(tmp_path / "one")
    assert whole == RECIPE.steps
    monkeypatch.setenv("TRTLLM_PT_CACHE", str(tmp_path / "killed"))
    parts = [run(tmp_path / "two", most)[0] for most in (2, 10, 1, 7)]
    rest, again, got = run(tmp_path / "two")
    assert sum(parts) + rest < whole + 3 * len(parts) + 1  # the state is saved every three steps
    assert again == report
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_seed_decides_the_weights(model: Path, text: Path, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        recipe = Recipe(steps=2, batch_tokens=64, seed=seed)
        to_dtp(model, tmp_path / name, 2, 1, [text], recipe=recipe, window=16, progress=False)
        return load_reference(tmp_path / name).transformer.ln_f.weight

    assert torch.equal(weights("a", 0), weights("b", 0))
    assert not torch.equal(weights("c", 0), weights("d", 1))


PT = "convert-to-pt MODEL --text TEXT -o OUT --window 16"
DTP = "convert-to-dtp MODEL --text TEXT -o OUT --window 16"
MISTAKES = {
    "a PT model": (
        f"convert-to-pt {PRETRAINED} -n 2 --block-depth 1 --text TEXT -o OUT",
        "the model has schedule 'pt'; only a dense model, of schedule 'tp', can be converted",
    ),
    "a PT model to DTP": (
        f"convert-to-dtp {PRETRAINED} -g 2 --delay 1 --text TEXT -o OUT",
        "the model has schedule 'pt'; only a dense model",
    ),
    "heads not divisible": (f"{PT} --tracks 3 --block-depth 1", "--tracks (3) must divide num_heads (8)"),
    "heads not divisible, DTP": (f"{DTP} --ranks 3 --delay 1", "--ranks (3) must divide num_heads (8)"),
    "one track": (
        f"{PT} --tracks 1 --block-depth 1",
        "Invalid value for '--tracks' / '-n': 1 is not in the range x>=2",
    ),
    "block depth": (f"{PT} -n 2 --block-depth 6", "--block-depth (6) must be between 1 and the model's 5 layers"),
    "delay": (
        f"{DTP} -g 2 --delay 10",
        "--delay (10) must be below 10, the number of sub-layers in the",
    ),
    "no delay": (f"{DTP} -g 2 --delay 0", "Invalid value for '--delay': 0 is not in the range x>=1"),
    "short text": (
        f"{PT} -n 2 --block-depth 1 --window 128",
        "--text has 401 tokens; it must have at least 1025, for 8 windows of 128 (--window)",
    ),
    "no text": (f"{PT} -n 2 --block-depth 1 --text nowhere.txt", "Path 'nowhere.txt' does not exist"),
    "no model": (
        "convert-to-pt nowhere -n 2 --block-depth 1 --text TEXT -o OUT",
        "there is no model directory nowhere",
    ),
    "output": (
        "convert-to-pt MODEL -n 2 --block-depth 1 --text TEXT -o MODEL",
        "already exists; remove it or choose another",
    ),
    "output bias": (
        "convert-to-pt BIASED -n 2 --block-depth 1 --text TEXT -o OUT",
        "output_bias (true) belongs to schedules 'tp' and 'spd', not to 'pt'",
    ),
    "experts": (
        "convert-to-pt EXPERTS -n 2 --block-depth 1 --text TEXT -o OUT",
        "the model has a mixture of experts; only models with dense FFNs can be converted",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISTAKES[name]
    dense = open_source(model).config
    places = {"MODEL": model, "TEXT": text, "OUT": tmp_path / "out"}
    if "BIASED" in arguments:
        places["BIASED"] = save_dense(tmp_path / "biased", dense.replace(output_bias=True))
    if "EXPERTS" in arguments:
        experts = {
            name: getattr(EVERYTHING, name) for name in ("num_experts", "experts_per_token", "moe_intermediate_size")
        }
        places["EXPERTS"] = save_dense(tmp_path / "experts", dense.replace(ffn_pattern=("moe",), **experts))
    with pytest.raises(SystemExit) as ended:
        main([str(places.get(word, word)) for word in arguments.split()])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache" / "spd").exists()


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on_and_ends_with_the_same_result(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(output: str) -> list[str]:
        words = [sys.executable, "-m", "trtllm_pt", "convert-to-dtp", str(model), "-g", "4", "--delay", "1"]
        return [*words, "--text", str(text), "--window", "16", "--steps", "200", "--json", "-o", str(tmp_path / output)]

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    want = subprocess.run(command("whole"), capture_output=True, text=True, check=True).stdout
    cache = tmp_path / "other"
    monkeypatch.setenv("TRTLLM_PT_CACHE", str(cache))
    with subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(cache.glob("spd/*/progress")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed").exists()
    assert subprocess.run(command("killed"), capture_output=True, text=True, check=True).stdout == want
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
