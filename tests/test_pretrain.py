"""examples/pretrain: every schedule trains as the reference network says, in one process and in several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.network.reference import ReferenceModel

PRETRAIN = Path(__file__).parents[1] / "examples" / "pretrain"
VOCABULARY = 300
SMALL: dict[str, Any] = {
    "num_layers": 4, "hidden_size": 32, "num_heads": 4, "num_kv_heads": 2, "head_size": 8, "intermediate_size": 24,
    "vocab_size": VOCABULARY, "tie_embeddings": True,
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "steps": 6, "decay_steps": 2, "warmup_steps": 2, "learning_rate": 0.002, "batch_tokens": 128, "sequence_length": 32,
    "decay_sequence_length": 64, "precision": "float32",
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "tp": {"schedule": "tp", "qkv_bias": True, "tie_embeddings": False},
    "parallel": {"schedule": "parallel", "qk_norm": True},
    "ladder": {"schedule": "ladder"},
    "spd": {"schedule": "spd", "tracks": 4, "dropped_layers": [1, 2]},
    "desync": {"schedule": "desync", "tracks": 4, "sync_every": 2},
    "dtp": {"schedule": "dtp", "tracks": 2, "delay": 2},
    "pt": {"schedule": "pt", "tracks": 4, "block_depth": 2},
    "pt-sum": {"schedule": "pt", "tracks": 4, "block_depth": 3, "combine": "sum", "dispatch_norm": True,
               "combine_norm": True, "residual_norm": True},
    "pt-moe": {"schedule": "pt", "tracks": 2, "block_depth": 1, "ffn_pattern": ["dense", "moe"], "num_experts": 4,
               "experts_per_token": 2, "moe_intermediate_size": 16, "window": 16, "qk_norm": True,
               "qk_norm_after_rope": True, "attention_pattern": ["sliding", "global_nope"]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts import each other by name. Compiling takes longer than these small models train."""
    monkeypatch.syspath_prepend(str(PRETRAIN))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files as data.py writes them, with random tokens."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (PRETRAIN / "train.py").read_text().splitlines(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    assert tokenizer.get_vocab_size() == VOCABULARY
    tokenizer.save(str(folder / "tokenizer.json"))
    random = np.random.default_rng(0)
    for name, tokens in (("train", 8000), ("heldout", 1000)):
        random.integers(0, VOCABULARY, tokens).astype(np.uint16).tofile(folder / f"{name}.bin")
    return folder


def settings(folder: Path, name: str, **recipe: Any) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"model": SMALL | MODELS[name], "recipe": RECIPE | recipe}))
    return path


def run(script: Path, *arguments: object, processes: int = 1, **environment: str) -> subprocess.CompletedProcess[str]:
    launcher = (
        [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    )
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(PRETRAIN), *sys.path]),
    } | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500, env=env)


def log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without what differs from run to run."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_the_reference(name: str) -> None:
    from network import TrainingModel
    from ranks import Ranks

    config = ModelConfig.from_json(SMALL | MODELS[name])
    model = TrainingModel(config, Ranks(), seed=1)
    reference = ReferenceModel(config)
    reference.load_state_dict(model.share.state_dict())
    tokens = torch.randint(VOCABULARY, (2, 33), generator=torch.Generator().manual_seed(0))
    wanted = F.cross_entropy(reference(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss = model.nats(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).mean()
    torch.testing.assert_close(loss, wanted)
    wanted.backward()  # type: ignore[no-untyped-call]
    loss.backward()  # type: ignore[no-untyped-call]
    pairs = dict(reference.named_parameters())
    for parameter, value in model.share.named_parameters():
        torch.testing.assert_close(value.grad, pairs[parameter].grad, atol=1e-6, rtol=1e-4, msg=parameter)


def test_a_sequence_that_loses_tracks_has_the_mean_of_the_others() -> None:
    """With block depth L there is one mean, at the end, of what each track alone would give."""
    from network import TrainingModel
    from ranks import Ranks

    config = ModelConfig.from_json(SMALL | MODELS["pt"] | {"block_depth": SMALL["num_layers"]})
    model = TrainingModel(config, Ranks(), seed=1)
    tokens = torch.randint(VOCABULARY, (2, 33), generator=torch.Generator().manual_seed(0))
    norm, alone = model.share.transformer.ln_f, []
    model.share.transformer.ln_f = torch.nn.Identity()  # type: ignore[assignment]
    alone = [model(tokens, torch.eye(4)[:, [track, track], None]) for track in range(4)]
    model.share.transformer.ln_f = norm
    found = model(tokens, torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 1]])[..., None])
    torch.testing.assert_close(found[0], norm((alone[0][0] + alone[2][0]) / 2))
    torch.testing.assert_close(found[1], norm((alone[1][1] + alone[2][1] + alone[3][1]) / 3))
    torch.testing.assert_close(model(tokens, torch.ones(4, 2, 1)), model(tokens))


def test_each_step_loses_other_tracks() -> None:
    from recipe import kept_tracks, recipe_of

    recipe = recipe_of(RECIPE | {"batch_tokens": 32000, "track_dropout": 0.5})
    kept = kept_tracks(recipe, 4, 3)
    assert kept is not None and kept.shape == (4, 1000, 1)
    counts = np.bincount(kept.sum(0)[:, 0], minlength=5)
    assert counts[0] == 0 and all(120 < counts[k] < 210 for k in (1, 2, 3)) and 440 < counts[4] < 560, counts
    assert all(600 < each < 850 for each in kept.sum(1)[:, 0])  # no track is lost more often than others
    assert np.array_equal(kept, kept_tracks(recipe, 4, 3))
    assert not np.array_equal(kept, kept_tracks(recipe, 4, 2))
    assert kept_tracks(recipe_of(RECIPE), 4, 3) is None


def test_an_exported_run_is_a_model(tmp_path: Path, data: Path) -> None:
    (data / "files.json").write_text(json.dumps({"heldout": {"files": ["a.py"]}}))
    study, results, work = tmp_path / "small.json", tmp_path / "results", tmp_path / "work"
    study.write_text(
        json.dumps({"model": SMALL, "recipe": RECIPE, "seeds": [3], "rows": {"pt": {"model": MODELS["pt"]}}})
    )
    run(PRETRAIN / "study.py", study, "--data", data, "--results", results, "--work", work, "--keep")
    done = run(PRETRAIN / "export.py", work / "small" / "pt-seed3", "--data", data, "-o", tmp_path / "model")
    assert (done.returncode, done.stderr) == (0, "")
    assert "after 6 steps" in done.stdout
    source = open_source(tmp_path / "model")
    assert source.config == ModelConfig.from_json(SMALL | MODELS["pt"])
    done = run(PRETRAIN / "export.py", tmp_path / "nothing", "--data", data, "-o", tmp_path / "none")
    assert (
        done.stderr == f"export.py: {tmp_path / 'nothing'} is not the folder of a training run: it has no log.jsonl\n"
    )


def test_drafts_of_all_tracks_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracks

    text = (PRETRAIN / "tracks.py").read_text()[:1200]
    monkeypatch.setattr(tracks, "collect", lambda path: {"a.py": text})
    monkeypatch.setattr(tracks, "is_held_out", lambda name: True)
    texts = tracks.Texts(PRETRAIN.parents[1] / "pretrained" / "stdlib-pt", every=1, length=64)
    assert texts.bytes == len(text)
    assert texts.bits_per_byte(0, seed=0) < 2.5 < texts.bits_per_byte(7, seed=0)
    whole, alone = texts.accepted(ranks=1, k=3, seed=0), texts.accepted(ranks=8, k=3, seed=0)
    assert len(whole) > 3 and whole.tolist() == [3] * len(whole)
    assert alone.sum() < whole.sum() / 2


LOSSES = """
import json, sys
from pathlib import Path
import torch
from ranks import Ranks
from recipe import load
from train import Data, Training

ranks, losses = Ranks(), {}
for path in map(Path, sys.argv[3:]):
    training = Training(*load(path), Data(Path(sys.argv[1])), ranks)
    losses[path.stem] = [training.step() for _ in range(training.recipe.steps)]
    losses[path.stem].append(training.held_out(32)["nats_per_token"])
if ranks.rank == 0:
    Path(sys.argv[2]).write_text(json.dumps(losses))
ranks.close()
"""


def test_two_processes_have_the_losses_of_one(tmp_path: Path, data: Path) -> None:
    script = tmp_path / "losses.py"
    script.write_text(LOSSES)
    dropout = settings(tmp_path, "pt", learning_rate=0.001, track_dropout=0.5).rename(tmp_path / "dropout.json")
    files = [dropout, *(settings(tmp_path, name, learning_rate=0.001) for name in MODELS)]
    found = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.json"
        done = run(script, data, out, *files, processes=processes)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(out.read_text()))
    one, two = found
    assert one["dropout"] != one["pt"]
    for name in one:
        assert len(one[name]) == RECIPE["steps"] + 1
        # The sums over tracks and heads have another order. AdamW amplifies that: where a gradient is little more than
        # rounding, its sign decides which way a weight goes.
        assert two[name] == pytest.approx(one[name], abs=1e-5), name
        assert one[name][-2] != one[name][0]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path, data: Path, processes: int) -> None:
    path = settings(tmp_path, "pt", precision="bfloat16")
    for out, stops in (("whole", [6]), ("stopped", [3, 6])):
        for stop in stops:
            options = ["--data", data, "-o", tmp_path / out, "--stop", stop, "--eval-every", 2, "--save-every", 2]
            done = run(PRETRAIN / "train.py", path, *options, processes=processes)
            assert done.returncode == 0, done.stderr
    assert log(tmp_path / "whole") == log(tmp_path / "stopped")
    for rank in range(processes):
        files = [tmp_path / out / "step-6" / f"rank{rank}.pt" for out in ("whole", "stopped")]
        whole, stopped = (torch.load(file, weights_only=True) for file in files)
        torch.testing.assert_close(whole, stopped, rtol=0, atol=0)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: Path, data: Path) -> None:
    path = settings(tmp_path, "pt", steps=400)
    options = ["--data", data, "--eval-every", "50", "--save-every", "7"]
    whole = run(PRETRAIN / "train.py", path, *options, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    command = [
        sys.executable,
        str(PRETRAIN / "train.py"),
        str(path),
        *map(str, options),
        "-o",
        str(tmp_path / "killed"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (log_file := tmp_path / "killed" / "log.jsonl").exists() or len(log_file.read_text().splitlines()) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "step-400").exists()
    again = run(PRETRAIN / "train.py", path, *options, "-o", tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert log(tmp_path / "whole") == log(tmp_path / "killed")


@pytest.mark.parametrize(
    ("model", "recipe", "processes", "message"),
    [
        ({}, {"step": 3}, 1, "unknown key 'step' in the recipe; did you mean 'steps'?"),
        ({}, {"precision": "float16"}, 1, "precision ('float16') must be 'bfloat16' or 'float32'"),
        ({}, {"track_dropout": 1.5}, 1, "track_dropout (1.5) must be a number from 0 to 1"),
        ({"combine": "sum", "dispatch_norm": True}, {"track_dropout": 0.5}, 1, "tracks that schedule 'pt' averages"),
        ({}, {"batch_tokens": 100}, 1, "batch_tokens (100) must be a multiple of the sequence length (32)"),
        ({"vocab_size": 200}, {}, 1, "vocab_size (200) must be at least that of the data (300)"),
        ({"tracks": 3}, {}, 2, "ranks (2) must divide tracks (3)"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, data: Path, model: dict[str, Any], recipe: dict[str, Any], processes: int, message: str
) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"model": SMALL | MODELS["pt"] | model, "recipe": RECIPE | recipe}))
    done = run(PRETRAIN / "train.py", path, "--data", data, "-o", tmp_path / "run", processes=processes)
    assert message in done.stderr
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0].split("train.py: ")[0]
    assert done.returncode != 0
    assert not (tmp_path / "run").exists()


def test_a_study_trains_what_has_no_result_yet(tmp_path: Path, data: Path) -> None:
    study, results = tmp_path / "small.json", tmp_path / "results"
    rows = {"dense": {"plan": "tp"}, "pt": {"model": MODELS["pt"], "seeds": [1]}}
    study.write_text(json.dumps({"model": SMALL, "recipe": RECIPE, "seeds": [0, 1], "rows": rows}))
    options = [study, "--results", results]
    assert "no results yet" in run(PRETRAIN / "table.py", *options).stdout
    for rounds in ("dense-seed0, run 1 of 3\ndense-seed1, run 2 of 3\npt-seed1, run 3 of 3\n", ""):
        done = run(PRETRAIN / "study.py", *options, "--data", data, "--work", tmp_path / "work")
        assert (done.returncode, done.stdout) == (0, rounds), done.stderr
    assert not list((tmp_path / "work" / "small").iterdir())
    dense, pt = json.loads(run(PRETRAIN / "table.py", *options, "--json").stdout)
    bits = [json.loads((results / "small" / f"dense-seed{s}.jsonl").read_text().splitlines()[-1]) for s in (0, 1)]
    assert dense["bits"] == {str(s): bits[s]["held_out"]["bits_per_byte"] for s in (0, 1)}
    assert dense["bits"]["0"] != dense["bits"]["1"]
    assert (dense["all_reduces"], dense["bytes_per_token"], dense["predicted"]) == (8, 8 * 32 * 2, 1)
    assert (pt["all_reduces"], pt["bytes_per_token"], pt["predicted"]) == (2, 2 * 32 * 2, None)
    study.write_text(study.read_text().replace('"learning_rate": 0.002', '"learning_rate": 0.003'))
    done = run(PRETRAIN / "table.py", *options)
    assert done.returncode == 2
    assert "was trained with other settings" in done.stderr


def test_the_studies_of_this_repository_have_equal_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    from study import runs

    from trtllm_pt.model.cost import active_parameters

    for study in (PRETRAIN / "study").glob("*.json"):
        counts = {run.name: active_parameters(run.config) for run in runs(study)}
        assert max(counts.values()) < 1.012 * min(counts.values()), counts


@pytest.mark.parametrize("study", sorted((PRETRAIN / "study").glob("*.json")), ids=lambda path: path.stem)
def test_the_page_has_the_table_of_the_results(study: Path) -> None:
    """docs/schedules.md shows what `table.py` prints of the results in the repository."""
    page = (PRETRAIN.parents[1] / "docs" / "schedules.md").read_text()
    assert run(PRETRAIN / "table.py", study).stdout in page
