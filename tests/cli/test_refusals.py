"""What users get wrong: one line on stderr, its exit status, nothing written."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run, run_in
from trtllm_pt.model.presets import preset

# (arguments, what the line says); the folders are those of `inputs`
MISTAKES = {
    "unknown command": ("bild", r"unknown command 'bild'; did you mean 'build'\?"),
    "unknown option": ("init pt-tiny -o out --rnks 2", r"--rnks.*--ranks"),
    "missing argument": ("inspect", r"Missing argument 'CKPT\|ENGINES'"),
    "unknown preset": ("init pt-7b -o out", r"unknown preset 'pt-7b'; did you mean 'pt-6b'\?"),
    "unknown preset to show": ("presets dense-1", r"unknown preset 'dense-1'; did you mean 'dense-1b'\?"),
    "n not dividing": (
        "init pt-tiny -o out --ranks 3",
        r"ranks \(3\) must divide tracks \(8\).* runs on 1, 2, 4, 8 ranks",
    ),
    "rank outside": ("init pt-tiny -o out --ranks 2 --rank 2", r"rank \(2\) must be between 0 and ranks - 1 \(1\)"),
    "D larger than L": ("init deep.json -o out", r"block_depth \(5\) must be between 1 and num_layers \(4\)"),
    "unknown key": (
        "init typo.json -o out",
        r"unknown key 'block_dept' in the model config; did you mean 'block_depth'\?",
    ),
    "not JSON": ("init not.json -o out", r"not\.json is not a readable JSON file"),
    "no such config": ("init nowhere.json -o out", r"there is no nowhere\.json"),
    "no such model": ("convert nowhere -o out", r"nowhere"),
    "output is there": ("convert checkpoint -o checkpoint", r"checkpoint.*(exists|is there)"),
    "truncated weights": ("convert truncated -o out --ranks 1", r"rank1\.safetensors"),
    "missing weights": ("convert incomplete -o out --ranks 1", r"rank1\.safetensors"),
    "foreign build option": (
        "build checkpoint -o out --engine embedded --gemm-plugin auto --strip_plan",
        r"--gemm_plugin, --strip_plan cannot be used with --engine embedded, which takes --max_batch_size",
    ),
    "an FP8 KV cache": (
        "build quantised -o out --engine embedded",
        r"quantization \(W8A16 \+ FP8 KV cache\) must be none or one of W8A16, W4A16, .* for the embedded engine",
    ),
    "a form that nobody knows": (
        "build unknown -o out --engine embedded",
        r"unknown/config\.json: quant_algo \('W3A16'\) must be one of W8A16, W4A16",
    ),
    "quantise twice": ("convert quantised -o out --quantize W4A16", r"the model is already W8A16"),
    "export of quantised weights": (
        "export quantised -o out",
        r"quantised is W8A16 \+ FP8 KV cache, from which",
    ),
    "export to where something is": ("export checkpoint -o quantised", r"quantised already exists"),
    "unknown form of the embedding": (
        "convert checkpoint -o out --embedding W4A16",
        r"--embedding.*'W4A16' is not 'W8A16'",
    ),
    "unknown algorithm": ("convert checkpoint -o out --quantize int8", r"--quantize.*'int8' is not one of 'W8A16'"),
    "FP8 without ranges": ("convert checkpoint -o out --quantize FP8", r"quantize \('FP8'\) needs calibrate"),
    "too narrow for int8": (
        "init pt-moe-tiny -o out --quantize W8A16",
        r"mlp\.proj\.weight has 64 outputs and 96 inputs on each of 1 rank; both must be multiples of 64",
    ),
    "groups that do not divide": (
        "init pt-tiny -o out --ranks 2 --quantize W4A16-G128",
        r"quant_algo \('W4A16-G128'\): groups of 128 do not divide the 64 inputs of .* 2 ranks; W4A16-G64 has groups",
    ),
    "nothing to build": ("build -o out", r"CKPT is missing"),
    "bad number": ("run engine x --temperature -1", r"--temperature.*-1"),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad inputs in one folder."""
    folder = tmp_path_factory.mktemp("inputs")
    assert run_in(folder, "init", "pt-tiny", "-o", "checkpoint", "--ranks", "2").returncode == 0
    quantise = ("init", "pt-tiny", "-o", "quantised", "--ranks", "2", "--quantize", "W8A16", "--kv-cache", "FP8")
    assert run_in(folder, *quantise).returncode == 0
    (folder / "unknown").mkdir()
    known = (folder / "quantised" / "config.json").read_text()
    (folder / "unknown" / "config.json").write_text(known.replace("W8A16", "W3A16"))
    config = preset("pt-tiny").to_json()
    (folder / "deep.json").write_text(json.dumps(config | {"block_depth": 5}))
    (folder / "typo.json").write_text(json.dumps(config | {"block_dept": 4}))
    (folder / "not.json").write_text("{")
    for name in ("truncated", "incomplete"):
        shutil.copytree(folder / "checkpoint", folder / name)
    weights = folder / "truncated" / "rank1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    (folder / "incomplete" / "rank1.safetensors").unlink()
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(inputs: Path, name: str) -> None:
    arguments, message = MISTAKES[name]
    before = sorted(inputs.rglob("*"))
    done = run_in(inputs, *arguments.split())
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"Error: .*{message}.*\n", done.stderr)
    assert done.stdout == ""
    assert sorted(inputs.rglob("*")) == before


def test_debug_shows_the_trace(run: Run) -> None:
    done = run("presets", "pt-7b", env={"TRTLLM_PT_DEBUG": "1"})
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: unknown preset")


def test_other_ranks_say_who_they_are(run: Run) -> None:
    assert run("presets", "pt-7b", env={"PMI_SIZE": "2", "PMI_RANK": "1"}).stderr.startswith(
        "Error on rank 1: unknown preset"
    )
