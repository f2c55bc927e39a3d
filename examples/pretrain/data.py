"""Collect the standard library of the running Python, train a tokenizer on it, and write its tokens.

    python examples/pretrain/data.py -o runs/stdlib

This writes OUT/files.json (the files of each split), OUT/tokenizer.json, OUT/train.bin and OUT/heldout.bin. The .bin
files contain uint16 tokens of all documents in order; <|endoftext|> follows each document.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import sysconfig
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm

END = "<|endoftext|>"  # token id 0, which follows every document
HELD_OUT_ONE_IN = 50
# Files that people did not write for people: tables, generated text, build settings of this machine, test inputs that
# do not parse.
EXCLUDED = (
    "site-packages/*", "pydoc_data/*", "encodings/cp*", "encodings/iso8859_*", "encodings/mac_*", "encodings/koi8_*",
    "encodings/kz1048*", "encodings/ptcp154*", "encodings/tis_620*", "encodings/hp_roman8*", "encodings/palmos*",
    "config-*", "_sysconfigdata*", "lib2to3/tests/data/*", "test/encoded_modules/*", "*/__pycache__/*",
)  # fmt: skip


def collect(root: Path) -> dict[str, str]:
    """Return the texts of all .py files by path, relative to root and sorted.

    Files that are excluded, empty, not UTF-8, or exact duplicates are left out.
    """
    texts: dict[str, str] = {}
    seen: set[str] = set()
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        name = path.relative_to(root).as_posix()
        if any(fnmatch.fnmatch(name, pattern) for pattern in EXCLUDED):
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip() and text not in seen:
            seen.add(text)
            texts[name] = text
    return texts


def is_held_out(name: str) -> bool:
    """Return whether a file is held out. Only its path decides, so that other Python versions have the same split."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % HELD_OUT_ONE_IN == 0


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE. It can encode every text, and decoding returns the same text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokens(path: Path, texts: list[str], tokenizer: Tokenizer) -> int:
    """Write the tokens of all texts to a file of uint16. Returns their number."""
    end = tokenizer.token_to_id(END)
    ids = [token for text in tqdm(texts, desc=path.name) for token in (*tokenizer.encode(text).ids, end)]
    np.array(ids, dtype=np.uint16).tofile(path)
    return len(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, default=4096)
    args = parser.parse_args()
    texts = collect(Path(sysconfig.get_path("stdlib")))
    splits = {
        "train": {name: text for name, text in texts.items() if not is_held_out(name)},
        "heldout": {name: text for name, text in texts.items() if is_held_out(name)},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(list(splits["train"].values()), args.vocab_size)
    tokenizer.save(str(args.out / "tokenizer.json"))
    summary = {}
    for name, split in splits.items():
        tokens = write_tokens(args.out / f"{name}.bin", list(split.values()), tokenizer)
        size = sum(len(text.encode()) for text in split.values())
        summary[name] = {"bytes": size, "tokens": tokens, "files": list(split)}
        print(f"{name}: {len(split)} files, {size} bytes, {tokens} tokens, {size / tokens:.3f} bytes per token")
    (args.out / "files.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
