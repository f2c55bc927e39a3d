"""What a sweep measures, what is chosen from it, and how it goes on after an interruption."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.configs import PRETRAINED
from trtllm_pt import planner
from trtllm_pt.backends.export import write
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.load import load_reference, reference_of
from trtllm_pt.checkpoint.split import SplitSource
from trtllm_pt.cli.app import main
from trtllm_pt.spd.analyse import EXTREME, INSENSITIVE, SENSITIVE, Search, analyse
from trtllm_pt.spd.blocks import Blocks
from trtllm_pt.spd.streams import Streams
from trtllm_pt.spd.sweep import Sweep
from trtllm_pt.spd.windows import read_windows

WINDOW = 16
SETS: list[tuple[int, ...]] = [(), (4,), (0, 2), (0, 1, 2, 3, 4)]


def sweep_of(model: Path, text: Path, folder: Path, ranks: int = 4) -> Sweep:
    source = SplitSource(open_source(model), ranks)
    windows = read_windows(open_source(model), [text], WINDOW, 10 * WINDOW)
    return Sweep(Streams(Blocks(source, torch.float32), windows, folder), progress=False)


def true_nats(model: Path, dropped: tuple[int, ...], windows: Tensor, ranks: int = 4) -> np.ndarray:
    reference = reference_of(SplitSource(open_source(model), ranks, dropped), torch.float64)
    with torch.no_grad():
        logits = reference(windows[:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
    return losses.view(len(windows), -1).mean(1).numpy()


@pytest.mark.parametrize("tracks", [2, 4, 8])
def test_a_split_model_without_dropped_layers_is_the_dense_model(model: Path, tracks: int) -> None:
    """8 tracks share 4 KV heads."""
    dense = load_reference(model, torch.float64)
    split = reference_of(SplitSource(open_source(model), tracks), torch.float64)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(split(tokens), dense(tokens), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("ranks", [2, 8])
def test_a_sweep_measures_what_the_reference_computes(model: Path, text: Path, tmp_path: Path, ranks: int) -> None:
    sweep = sweep_of(model, text, tmp_path / "state", ranks)
    for dropped, found in zip(SETS, sweep.measure(SETS, "sets"), strict=True):
        np.testing.assert_allclose(found, true_nats(model, dropped, sweep.streams.windows, ranks), rtol=2e-5)
    assert sorted(path.name for path in sweep.streams.folder.iterdir()) == ["results.json"]


class Killed(BaseException):
    pass


def counted(monkeypatch: pytest.MonkeyPatch, most: float = math.inf) -> list[str]:
    """The prefixes that sweeps compute from now on; a sweep is killed at the beginning of one more than `most`."""
    made: list[str] = []
    advance = Streams.advance

    def count(self: Streams, layer: Any, prefix: str) -> None:
        if len(made) >= most:
            raise Killed
        made.append(prefix)
        advance(self, layer, prefix)

    monkeypatch.setattr(Streams, "advance", count)
    return made


def test_a_killed_sweep_goes_on_where_it_was(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        whole = counted(patch)
        want = sweep_of(model, text, tmp_path / "whole").measure(SETS, "sets")
    assert len(whole) == len({s[:n] for s in ("00000", "00001", "10100", "11111") for n in range(1, 6)})
    made: list[str] = []
    for stop in (1, 2, 3, 5, 2, 1):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            part = counted(patch, stop)
            sweep_of(model, text, tmp_path / "killed").measure(SETS, "sets")
        made += part
    with monkeypatch.context() as patch:
        rest = counted(patch)
        got = sweep_of(model, text, tmp_path / "killed").measure(SETS, "sets")
    assert sorted(made + rest) == sorted(whole)
    assert [each.tobytes() for each in got] == [each.tobytes() for each in want]


class Additive:
    """A sweep in which every dropped layer costs its own nats, in all 16 windows or with a spread."""

    def __init__(self, costs: Sequence[float], spread: float = 0.0) -> None:
        self.costs, self.spread = costs, spread
        self.windows, self.layers = 16, len(costs)

    def measure(self, sets: Sequence[Collection[int]], what: str) -> list[np.ndarray]:
        signs = np.where(np.arange(16) % 2, 1.0, -1.0) * self.spread
        return [2.0 + sum(self.costs[layer] for layer in dropped) + signs * len(dropped) for dropped in sets]


@pytest.mark.parametrize(
    ("costs", "spread", "budget", "dropped"),
    [
        ([0.5, 0.001, 0.3, 0.002], 0.0, 0.01, (1, 3)),
        ([0.5, 0.001, 0.3, 0.002], 0.0, 0.0, ()),
        ([0.5, -0.001, 0.3, 0.002], 0.0, 0.0, (1,)),
        ([0.0, 0.0, 0.0, 0.0], 0.0, 0.0, (0, 1, 2, 3)),
        ([2**-8] * 4, 0.0, 0.01, (2, 3)),  # the later ones of equal layers
        ([2**-8] * 4, 0.004, 0.01, (3,)),  # two layers might cost more than the budget elsewhere
    ],
)
def test_the_largest_set_within_the_budget(
    costs: list[float], spread: float, budget: float, dropped: tuple[int, ...]
) -> None:
    search = Search(Additive(costs, spread), budget)  # type: ignore[arg-type]
    assert search.largest_set() == dropped
    assert search.rise_high(dropped) <= budget


def test_classes_follow_from_the_budget() -> None:
    search = Search(Additive([0.02, 0.0094, 0.0026, 0.0024, -0.1]), 0.01)  # type: ignore[arg-type]
    assert search.thresholds() == pytest.approx((1.01 ** (1 / 5) - 1, 0.01))
    kinds = [each.sensitivity for each in search.layers(())]
    assert kinds == [EXTREME, SENSITIVE, SENSITIVE, SENSITIVE, INSENSITIVE]
    assert [each.rise for each in search.layers(())] == pytest.approx(np.expm1(search_costs(search)))


def search_costs(search: Search) -> Sequence[float]:
    assert isinstance(search.sweep, Additive)
    return search.sweep.costs


def test_the_model_that_is_written_is_the_one_that_was_measured(model: Path, text: Path, tmp_path: Path) -> None:
    found, source = analyse(model, 4, [text], budget=0.5, window=WINDOW, tokens=20 * WINDOW, progress=False)
    assert found.dropped_layers
    folder = write(source, tmp_path / "spd", progress=False)
    config = json.loads((folder / "config.json").read_text())
    assert (config["schedule"], config["tracks"]) == ("spd", 4)
    assert tuple(config["dropped_layers"]) == found.dropped_layers
    windows = read_windows(open_source(folder), [text], WINDOW, 20 * WINDOW)
    assert (found.windows, found.held_out_windows) == (15, 5)
    before, after = (true_nats(model, dropped, windows) for dropped in ((), found.dropped_layers))
    assert found.perplexity == pytest.approx(math.exp(before[:15].mean()), rel=1e-4)
    assert found.rise == pytest.approx(math.expm1((after - before)[:15].mean()), abs=1e-4)
    assert found.held_out_rise == pytest.approx(math.expm1((after - before)[15:].mean()), abs=1e-4)
    with torch.no_grad():
        got = load_reference(folder, torch.float64)(windows[:, :-1])
        want = reference_of(source, torch.float64)(windows[:, :-1])
    assert torch.equal(got, want)


MISTAKES = {
    "a PT model": (
        f"{PRETRAINED} -g 2 --text TEXT",
        "the model has schedule 'pt'; only a dense model, of schedule 'tp'",
    ),
    "heads not divisible": ("MODEL -g 3 --text TEXT", r"ranks (3) must divide num_heads (8) for schedule 'tp'"),
    "one rank": ("MODEL -g 1 --text TEXT", "Invalid value for '--ranks' / '-g': 1 is not in the range x>=2"),
    "short text": (
        "MODEL -g 2 --text TEXT --window 128",
        "--text has 401 tokens; it must have at least 1025, for 8 windows of 128 (--window)",
    ),
    "window": ("MODEL -g 2 --text TEXT --window 129", "--window (129) must be at most the model's max_position"),
    "budget below 0": ("MODEL -g 2 --text TEXT --budget -1%", "Invalid value for '--budget': -1% must be at least 0"),
    "budget": ("MODEL -g 2 --text TEXT --budget few", "Invalid value for '--budget': 'few' is not a share, such as 1%"),
    "no model": ("nowhere -g 2 --text TEXT", "there is no model directory nowhere"),
    "no text": ("MODEL -g 2 --text nowhere.txt", "Invalid value for '--text': Path 'nowhere.txt' does not exist"),
    "output": ("MODEL -g 2 --text TEXT -o MODEL", "already exists; remove it or choose another"),
    "machine": ("MODEL -g 2 --text TEXT --machine 9xZ1", "9xZ1"),
    "more ranks than devices": (
        "MODEL -g 2 --text TEXT --machine one.json",
        "ranks (2) must not exceed the devices of one (1)",
    ),
    "plot": ("MODEL -g 2 --text TEXT --plot plot.gif", "--plot (plot.gif) must end in .png or .svg"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(
    name: str, model: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text.parent)
    machine = json.loads((Path(planner.__file__).parent / "machines" / "8xH100.json").read_text())
    Path("one.json").write_text(json.dumps(machine | {"name": "one", "devices": 1}))
    arguments, message = MISTAKES[name]
    words = arguments.replace("MODEL", str(model)).replace("TEXT", str(text)).split()
    before = sorted(text.parent.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(["spd", "analyse", *words])
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.count("\n") == 1 and message in err
    assert sorted(text.parent.rglob("*")) == before


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on_and_ends_with_the_same_result(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-m", "trtllm_pt", "spd", "analyse", str(model), "-g", "4", "--text", str(text)]
    command += ["--window", str(WINDOW), "--json"]
    want = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cache = tmp_path / "other"
    monkeypatch.setenv("TRTLLM_PT_CACHE", str(cache))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not list(cache.glob("spd/*/streams-*.npy")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert list(cache.glob("spd/*/streams-*.npy"))
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == want
