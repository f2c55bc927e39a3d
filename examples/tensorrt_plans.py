"""Compile TensorRT plans for two ranks without a GPU, and execute their networks on PyTorch: `make tensorrt-demo`.

It builds the trained model of this repository, and a dense model of the same shape with random weights for comparison
under tensor parallelism. Then it compares the logits of the trained model with those of the reference network.
"""

import shutil
import sys
from pathlib import Path

import torch

from trtllm_pt import build, convert
from trtllm_pt.backends import inspect
from trtllm_pt.backends.tensorrt.interpreter.networks import networks
from trtllm_pt.backends.tensorrt.interpreter.steps import Steps
from trtllm_pt.checkpoint.init import init
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.text.tokenizer import load_tokenizer

MODEL = Path(__file__).parents[1] / "pretrained" / "stdlib-pt"
RANKS = 2
PROMPT = "def parse_args(argv):\n    parser = argparse."
CHUNK = 8  # tokens of the prompt in one step


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    config = ModelConfig.from_file(MODEL / "config.json")
    checkpoints = {
        "Parallel Track": convert(MODEL, folder / "checkpoint-pt", RANKS, dtype="float32"),
        "tensor parallelism": init(dense(config), folder / "checkpoint-tp", RANKS, dtype="float32"),
    }
    for name, checkpoint in checkpoints.items():
        engines = folder / checkpoint.name.replace("checkpoint", "engines")
        show_plans(name, engines, build(checkpoint, engines, "tensorrt").seconds)
    show_logits(checkpoints["Parallel Track"])
    print(
        "\nThe plans were compiled by NVIDIA's builder, and their networks executed on PyTorch. "
        "No plan was executed: that needs an NVIDIA GPU for each rank."
    )


def dense(config: ModelConfig) -> ModelConfig:
    """Return a model of one track that is as wide in heads and FFN rows as all tracks of `config` together."""
    names = ("num_heads", "num_kv_heads", "intermediate_size")
    wide = {name: config.tracks * getattr(config, name) for name in names}
    return config.replace(schedule="tp", tracks=1, block_depth=None, **wide)


def show_plans(name: str, engines: Path, seconds: float) -> None:
    compiled = inspect(engines)["compiled"]
    sizes = " and ".join(f"{plan['bytes'] / 2**20:.1f} MiB" for plan in compiled["plans"])
    sends = compiled["collectives"]["decode"]
    print(f"{name}: plans of {sizes} in {engines}, built in {seconds:.0f} s")
    print(f"  each token: {sends['comm_allreduce']} all-reduces, {sends['comm_allgather']} gather of logits")


def show_logits(checkpoint: Path) -> None:
    """Feed the prompt to the networks of both ranks in chunks, and print the best next tokens."""
    tokenizer = load_tokenizer(MODEL, required=True)
    tokens = tokenizer.encode(PROMPT).ids
    steps = Steps(networks(checkpoint, slot_size=64), slots=1)
    for start in range(0, len(tokens), CHUNK):
        found = steps.prefill(0, tokens[start : start + CHUNK])
    with torch.no_grad():
        true = load_reference(MODEL)(torch.tensor([tokens]))[0, -1]
    print(f"\nNext token after {PROMPT!r}, {len(tokens)} tokens:")
    print(f"  {'token':<14}{'network':>12}{'reference':>12}")
    for token in true.topk(5).indices.tolist():
        print(f"  {tokenizer.decode([token])!r:<14}{found[token]:12.5f}{true[token]:12.5f}")
    error = float((found[: len(true)] - true).abs().max() / true.abs().max())
    print(f"  largest difference of all {len(true)} logits: {error:.1e} of the largest logit")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
