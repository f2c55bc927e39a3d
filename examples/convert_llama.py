"""Convert a Hugging Face Llama, build an engine for two ranks, and compare its tokens with those of transformers."""

import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trtllm_pt import LLM, SamplingParams, build, convert


def main(folder: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 256}
    config = LlamaConfig(vocab_size=256, num_attention_heads=4, num_key_value_heads=2, **sizes)
    model = LlamaForCausalLM(config).eval()  # a small model with random weights; any Llama works
    model.save_pretrained(folder / "llama")

    convert(folder / "llama", folder / "checkpoint", ranks=2, dtype="float32")
    build(folder / "checkpoint", folder / "engine", engine="embedded")

    prompt = [1, 17, 42, 99]
    with LLM(folder / "engine") as llm:
        [ours] = llm.generate([prompt], SamplingParams(max_tokens=16, end_id=-1))
    wanted = model.generate(torch.tensor([prompt]), max_new_tokens=16, min_new_tokens=16, do_sample=False)
    theirs = wanted[0, len(prompt) :].tolist()
    print("trtllm_pt:   ", *ours.token_ids)
    print("transformers:", *theirs)
    print("equal" if list(ours.token_ids) == theirs else "different")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(Path(scratch))
