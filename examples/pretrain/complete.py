"""Complete prompts with the reference model and the weights of a MODEL_DIR. It is slow, and independent of all engines.

    python examples/pretrain/complete.py pretrained/stdlib-pt "import os" --temperature 0.7

Prompts are tokenized with MODEL_DIR's tokenizer. A completion ends at <|endoftext|>.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from data import END
from evaluate import load_model
from tokenizers import Tokenizer

from trtllm_pt.network.reference import ReferenceModel

PROMPTS = ["def ", "import os\n", "class Node:\n    def __init__(self", "for i in range(", "    def test_"]


@torch.no_grad()
def complete(
    model: ReferenceModel, tokenizer: Tokenizer, prompt: str, tokens: int, temperature: float, top_k: int, seed: int
) -> str:
    """Return the prompt and up to `tokens` new tokens, as text. Temperature 0 chooses the likeliest token."""
    end = tokenizer.token_to_id(END)
    ids = tokenizer.encode(prompt).ids
    random = torch.Generator().manual_seed(seed)
    for _ in range(tokens):
        logits = model(torch.tensor([ids]))[0, -1]
        if temperature == 0:
            token = int(logits.argmax())
        else:
            best, index = logits.topk(top_k)
            token = int(index[torch.multinomial((best / temperature).softmax(-1), 1, generator=random)])
        if token == end:
            break
        ids.append(token)
    return tokenizer.decode(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("prompt", nargs="*", default=PROMPTS)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-k", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    model, tokenizer = load_model(args.model)
    for prompt in args.prompt:
        print("-" * 80)
        print(complete(model, tokenizer, prompt, args.max_tokens, args.temperature, args.top_k, args.seed))


if __name__ == "__main__":
    main()
