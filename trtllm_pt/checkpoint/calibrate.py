"""Run text through the reference network to find the ranges of values that FP8 has to represent."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from trtllm_pt.checkpoint.encoded import Ranges
from trtllm_pt.checkpoint.load import reference_of
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.quantization import is_quantized
from trtllm_pt.model.tensors import tensors
from trtllm_pt.network.reference import ReferenceModel
from trtllm_pt.text.tokenizer import load_tokenizer

SEQUENCES, LENGTH = 128, 512  # at most this many sequences, of at most this many tokens
_CHARACTERS = SEQUENCES * LENGTH * 16  # enough characters of a text for that many tokens


def calibrate(source: Source, file: Path, progress: bool | None = None) -> Ranges:
    """Return the ranges of values for the first tokens of `file`, up to 128 sequences of 512.

    file: UTF-8 text, for a model with a tokenizer, or token ids: a .json list of lists, or a .jsonl with one list per
    line. Peak memory: the whole model in float32, and the activations of one sequence in one layer.
    Raises UsageError for a file without tokens of this model, and for activations that are not finite.
    """
    sequences = token_sequences(source, file)
    return measure(reference_of(source, torch.float32), sequences, progress)


def measure(model: ReferenceModel, sequences: list[list[int]], progress: bool | None = None) -> Ranges:
    """Return the largest magnitudes of every quantised matrix's input and of every layer's keys and values."""
    config = model.config
    matrices = {
        spec.name: model.get_submodule(spec.name.removesuffix(".weight"))
        for spec in filter(is_quantized, tensors(config))
    }
    caches = [layer.attention.kv_cache for layer in model.transformer.layers]
    seen: dict[nn.Module, Tensor] = {}

    def see(module: nn.Module, inputs: tuple[Tensor]) -> None:
        largest = inputs[0].abs().flatten(1).amax(1)
        seen[module] = torch.maximum(seen.get(module, largest), largest)

    with ExitStack() as stack, torch.no_grad():
        for module in (*matrices.values(), *caches):
            stack.callback(module.register_forward_pre_hook(see).remove)
        for tokens in tqdm(sequences, desc="calibrating", unit="", disable=None if progress is None else not progress):
            model.transformer(torch.tensor([tokens]))
    ranges = Ranges(
        inputs={name: seen[module].tolist() for name, module in matrices.items()},
        kv=[float(seen[cache].max()) for cache in caches],
    )
    _check_finite(ranges)
    return ranges


def _check_finite(ranges: Ranges) -> None:
    for name, largest in ranges.inputs.items():
        if not all(map(math.isfinite, largest)):
            raise UsageError(f"calibrate: the input of {name} becomes NaN or infinite; check the model's weights")


def token_sequences(source: Source, file: Path) -> list[list[int]]:
    """Return the first 128 sequences of the file, each cut at 512 tokens or at the model's number of positions.

    Raises UsageError for a file that cannot be read, holds no tokens, or has tokens outside the vocabulary.
    """
    length = min(LENGTH, source.config.max_position_embeddings)
    try:
        if file.suffix in (".json", ".jsonl"):
            lists = _token_ids(file.read_text(encoding="utf-8"), file.suffix == ".jsonl")
            sequences = [tokens[:length] for tokens in lists if tokens]
        else:
            tokens = _encoded(source, file)
            sequences = [tokens[start : start + length] for start in range(0, len(tokens), length)]
    except OSError as error:
        raise UsageError(f"calibrate: cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"calibrate: {file} is not UTF-8 text") from None
    except (ValueError, RecursionError):
        wanted = "one list of token ids per line" if file.suffix == ".jsonl" else "a list of lists of token ids"
        raise UsageError(f"calibrate: {file} must hold {wanted}") from None
    if not sequences:
        raise UsageError(f"calibrate: {file} holds no tokens")
    _check_tokens(sequences[:SEQUENCES], source.config, file)
    return sequences[:SEQUENCES]


def _token_ids(text: str, is_lines: bool) -> list[list[int]]:
    """Parse lists of token ids. Raises ValueError for anything else."""
    found: Any = [json.loads(line) for line in text.splitlines() if line.strip()] if is_lines else json.loads(text)
    good = isinstance(found, list) and all(
        isinstance(tokens, list) and all(type(token) is int for token in tokens) for tokens in found
    )
    if not good:
        raise ValueError
    lists: list[list[int]] = found
    return lists


def _encoded(source: Source, file: Path) -> list[int]:
    tokenizer: Tokenizer | None = load_tokenizer(source.tokenizer) if source.tokenizer else None
    if tokenizer is None:
        raise UsageError(f"calibrate: the model has no tokenizer.json to encode {file}; give token ids as .jsonl")
    with open(file, encoding="utf-8") as text:
        return list(tokenizer.encode(text.read(_CHARACTERS)).ids)


def _check_tokens(sequences: list[list[int]], config: ModelConfig, file: Path) -> None:
    for token in (token for tokens in sequences for token in tokens):
        if not 0 <= token < config.vocab_size:
            raise UsageError(f"calibrate: {file} has token {token}, outside the vocabulary of {config.vocab_size}")
