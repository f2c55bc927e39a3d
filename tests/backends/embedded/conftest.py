"""Engines that the tests here share, built through the command line, two at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import SMALL
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.init import init
from trtllm_pt.model.config import ModelConfig

PRETRAINED = Path(__file__).parents[3] / "pretrained" / "stdlib-pt"
# Everything that the config can say of a PT model, in one: 4 tracks, 5 layers.
EVERYTHING = SMALL.replace(
    combine="sum",
    dispatch_norm=True,
    combine_norm=True,
    residual_norm=True,
    qk_norm=True,
    qk_norm_after_rope=True,
    attention_pattern=("sliding", "global_nope", "sliding"),
    window=9,
    rope_scaling={"rope_type": "linear", "factor": 2.0},
    ffn_pattern=("dense", "moe"),
    num_experts=4,
    experts_per_token=2,
    moe_intermediate_size=24,
    router_logits_cap=5.0,
    tie_embeddings=True,
)
LLAMA = SMALL.replace(
    schedule="tp",
    tracks=1,
    block_depth=None,
    qkv_bias=True,
    output_bias=True,
    rope_scaling={
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
)
PLAIN = SMALL.replace(block_depth=None, schedule="spd", num_layers=3)
OTHER_SCHEDULES = {
    "spd": PLAIN.replace(dropped_layers=(0, 2)),
    "desync": PLAIN.replace(schedule="desync", sync_every=2),
    "parallel": PLAIN.replace(schedule="parallel", tracks=1),
    "ladder": PLAIN.replace(schedule="ladder", tracks=1),
}
RANKS = (1, 2, 4, 8)
FEW_RANKS = (1, 2)  # those that the fast tests have engines for
ENGINES: dict[str, tuple[ModelConfig | Path, int, str]] = {
    **{f"pretrained-{ranks}": (PRETRAINED, ranks, "bfloat16") for ranks in RANKS},
    **{f"pretrained-{ranks}-float32": (PRETRAINED, ranks, "float32") for ranks in RANKS},
    "everything-1": (EVERYTHING, 1, "float32"),
    "everything-2": (EVERYTHING, 2, "float32"),
    "llama-1": (LLAMA, 1, "float32"),
    "llama-2": (LLAMA, 2, "float32"),
    **{f"{name}-2": (config, 2, "float32") for name, config in OTHER_SCHEDULES.items()},
}

Engines = Callable[..., list[Path]]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """Names of ENGINES -> their folders; the checkpoints lie beside them as `checkpoint-NAME`."""
    root = tmp_path_factory.mktemp("engines")

    def folders(*names: str) -> list[Path]:
        missing = [name for name in names if not (root / name).exists()]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: _build(root, name), missing))
        return [root / name for name in names]

    return folders


def _build(root: Path, name: str) -> None:
    model, ranks, dtype = ENGINES[name]
    checkpoint = root / f"checkpoint-{name}"
    if isinstance(model, Path):
        convert(model, checkpoint, ranks=ranks, dtype=dtype)
    else:
        init(model, checkpoint, ranks=ranks, dtype=dtype)
    trtllm_pt("build", str(checkpoint), "-o", str(root / name), "--max_num_tokens", "256", "--max_seq_len", "128")


def trtllm_pt(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "trtllm_pt", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def mpirun(ranks: int, *command: Iterable[str] | str) -> str:
    """What rank 0 printed."""
    launcher = [str(Path(sys.prefix) / "bin" / "mpirun"), "-n", str(ranks)] if ranks > 1 else []
    worker = [sys.executable, *(["-m", "mpi4py"] if ranks > 1 else []), *map(str, command)]
    done = subprocess.run([*launcher, *worker], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
