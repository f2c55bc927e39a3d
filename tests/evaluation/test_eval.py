"""`trtllm-pt eval` against the reference network."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import run_in
from tests.configs import PRETRAINED
from tests.evaluation.peers import CONTEXT, card_score, write_texts
from trtllm_pt.backends.build import build
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.evaluation.windows import windows
from trtllm_pt.text.tokenizer import load_tokenizer

WINDOW, STRIDE = 100, 40


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    (folder / "inside").mkdir()
    (folder / "one.py").write_text("import os\n\n\ndef main(argv):\n    return os.path.join(*argv)\n" * 6)
    (folder / "inside" / "two.txt").write_text("naïve — “quoted” text, not code\n")
    (folder / "empty.txt").write_text("")
    (folder / ".hidden").write_bytes(b"\xff")
    return folder


def expected(
    paths: Iterable[Path], window: int, stride: int, dtype: torch.dtype = torch.float64
) -> tuple[float, int, int, int]:
    """Nats, tokens, bytes, and how many tokens are the likeliest, of the reference."""
    model, tokenizer = load_reference(PRETRAINED, dtype), load_tokenizer(PRETRAINED, required=True)
    nats, tokens, size, right = 0.0, 0, 0, 0
    for path in paths:
        ids = [0, *tokenizer.encode(path.read_text()).ids]
        for begin, end, predicted in windows(len(ids), window, stride):
            with torch.no_grad():
                found = model(torch.tensor([ids[begin : end - 1]]))[0].log_softmax(-1)[-predicted:]
            wanted = torch.tensor(ids[end - predicted : end])
            nats -= found.gather(1, wanted[:, None]).sum().item()
            right += int((found.argmax(-1) == wanted).sum())
        tokens += len(ids) - 1
        size += path.stat().st_size
    return nats, tokens, size, right


@pytest.mark.parametrize(
    ("name", "tolerance"), [("pretrained-2", 2e-3), pytest.param("pretrained-2-float32", 1e-5, marks=pytest.mark.slow)]
)
def test_values(engine, texts: Path, name: str, tolerance: float) -> None:
    nats, tokens, size, right = expected((texts / "inside" / "two.txt", texts / "one.py"), WINDOW, STRIDE)
    given = f"--text {texts} --window {WINDOW} --stride {STRIDE} --json".split()
    done = run_in(texts, "eval", str(engine(name)), *given)
    found = json.loads(done.stdout)
    assert (found["texts"], found["tokens"], found["bytes"]) == (2, tokens, size)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=tolerance)
    assert found["nats_per_token"] == pytest.approx(nats / tokens, rel=tolerance)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=10 * tolerance)
    assert found["top1_accuracy"] == pytest.approx(right / tokens, abs=0.02)


@pytest.mark.slow
def test_the_number_in_the_models_card(tmp_path: Path) -> None:
    """The reference has it. `make eval-peers` compares it with those of our engines and of lm-evaluation-harness."""
    nats, _, size, _ = expected(write_texts(tmp_path), CONTEXT, CONTEXT, torch.float32)
    assert round(nats / math.log(2) / size, 3) == card_score()


def test_against_itself_on_another_number_of_ranks(engine, texts: Path) -> None:
    """A PT model's log-probs do not depend on the number of ranks."""
    given = f"--text {texts / 'one.py'} --against {engine('pretrained-1')}".split()
    done = run_in(texts, "eval", str(engine("pretrained-2")), *given)
    assert done.returncode == 0, done.stderr
    assert "difference: +0.00000 bits per byte (95 % interval +0.00000 to +0.00000)" in done.stdout
    assert "KL divergence 0 nats per token" in done.stdout
    assert "both choose the same token for 100.00% of the tokens" in done.stdout


def divergences(texts: Path, other: dict[str, torch.Tensor]) -> float:
    """The mean divergence of the reference from a network with other weights, over all tokens, in float64."""
    true, tokenizer = load_reference(PRETRAINED, torch.float64), load_tokenizer(PRETRAINED, required=True)
    worse = load_reference(PRETRAINED, torch.float64)
    worse.load_state_dict(other)
    ids = [0, *tokenizer.encode((texts / "one.py").read_text()).ids]
    total, tokens = 0.0, 0
    for begin, end, predicted in windows(len(ids), WINDOW, STRIDE):
        with torch.no_grad():
            p, q = (m(torch.tensor([ids[begin : end - 1]]))[0].log_softmax(-1)[-predicted:] for m in (true, worse))
        total += (p.exp() * (p - q)).sum().item()
        tokens += predicted
    return total / tokens


def test_divergence_from_other_weights(engine, texts: Path, tmp_path: Path) -> None:
    """Of engines whose weights are rounded to few bits, from the model; both engines run in this process."""
    from safetensors.torch import load_file, save_file

    model = shutil.copytree(PRETRAINED, tmp_path / "model")
    coarse = {
        name: (tensor.float() * 8).round().div(8).to(tensor.dtype)
        for name, tensor in load_file(model / "model.safetensors").items()
    }
    save_file(coarse, model / "model.safetensors", metadata={"format": "pt"})
    convert(model, tmp_path / "checkpoint", ranks=1, dtype="bfloat16")
    build(tmp_path / "checkpoint", tmp_path / "engines", engine="embedded")
    given = f"--text {texts / 'one.py'} --window {WINDOW} --stride {STRIDE} --json --against {engine('pretrained-1')}"
    done = run_in(texts, "eval", str(tmp_path / "engines"), *given.split())
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["difference"]["kl_divergence"]
    wanted = divergences(texts, load_reference(model, torch.float64).state_dict())
    assert wanted > 0.1 and found == pytest.approx(wanted, rel=2e-2)  # the engines compute in bfloat16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--text missing", "'missing' does not exist"),
        ("--text .hidden", ".hidden is not UTF-8: byte 0 is 0xff"),
        ("--text empty.txt", "every file is empty"),
        ("--text one.py --window 5000", "--window (5000) must be at most"),
        ("--text one.py --window 5 --stride 6", "--stride (6) must be at most --window (5)"),
        ("--text one.py --against nowhere", "there is no engine directory at nowhere"),
        ("", "Missing option '--text'"),
    ],
)
def test_mistakes(engine, texts: Path, given: str, message: str) -> None:
    done = run_in(texts, "eval", str(engine("pretrained-1")), *given.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
