"""llama.cpp through llama-cpp-python's binding of its C API: one llama_decode per step, as its own server does."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np
from side import Prompts, main, nats_of

_STEP_TOKENS, _UBATCH = 2048, 512


def convert(source: Path, target: Path, form: str = "") -> None:
    """A Llama in bfloat16 from Hugging Face's format to GGUF, with a vocabulary of made-up words.

    form: Q8_0, Q4_0 or Q4_K_M, to which llama.cpp quantises a GGUF file in bfloat16.
    """
    if form:
        _quantize(source, target, form)
        return
    import gguf

    c = json.loads((source / "config.json").read_text())
    out = gguf.GGUFWriter(target, "llama")
    out.add_block_count(c["num_hidden_layers"])
    out.add_context_length(c["max_position_embeddings"])
    out.add_embedding_length(c["hidden_size"])
    out.add_feed_forward_length(c["intermediate_size"])
    out.add_head_count(c["num_attention_heads"])
    out.add_head_count_kv(c["num_key_value_heads"])
    out.add_key_length(c["head_dim"])
    out.add_value_length(c["head_dim"])
    out.add_rope_dimension_count(c["head_dim"])
    out.add_rope_freq_base((c.get("rope_parameters") or c)["rope_theta"])
    out.add_layer_norm_rms_eps(c["rms_norm_eps"])
    out.add_vocab_size(c["vocab_size"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    out.add_tokenizer_model("llama")
    out.add_token_list([f"w{token}" for token in range(c["vocab_size"])])
    out.add_token_scores([0.0] * c["vocab_size"])
    out.add_token_types([gguf.TokenType.NORMAL] * c["vocab_size"])
    for name, bits in _bfloat16_tensors(source / "model.safetensors"):
        heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}
        part = next((part for part in heads if part in name), None)
        if part is not None:
            bits = _pairs(bits, heads[part])
        if bits.ndim == 1:  # norms are float32 there
            out.add_tensor(_name(name), (bits.astype(np.uint32) << 16).view(np.float32))
        else:
            out.add_tensor(_name(name), bits.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _quantize(source: Path, target: Path, form: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{form}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise RuntimeError(f"llama_model_quantize to {form} failed")


def _bfloat16_tensors(path: Path) -> list[tuple[str, np.ndarray]]:
    """Their bits, as uint16. numpy has no bfloat16, and so safetensors' own reader for it none either."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    assert {info["dtype"] for info in header.values()} == {"BF16"}
    data = np.memmap(path, np.uint8, "r", offset=8 + size)
    return [
        (name, data[slice(*info["data_offsets"])].view(np.uint16).reshape(info["shape"]))
        for name, info in header.items()
    ]


def _pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of heads from RoPE on halves to RoPE on neighbours."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def _name(name: str) -> str:
    for theirs, ggufs in _NAMES.items():
        name = name.replace(theirs, ggufs)
    return name


class LlamaCpp:
    version = llama_cpp.__version__

    def __init__(self, path: str, threads: int) -> None:
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._threads = threads
        self._batch = llama_cpp.llama_batch_init(_STEP_TOKENS, 0, 1)
        self._contexts: dict[tuple[int, int], llama_cpp.llama_context_p] = {}

    def generate(self, prompts: Prompts, tokens: int, stamp: Callable[[], None]) -> list[list[int]]:
        context = self._context(len(prompts), len(prompts[0]) + tokens)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        found: list[list[int]] = [[] for _ in prompts]
        new, past = [list(prompt) for prompt in prompts], 0
        for _ in range(tokens):
            next_tokens = self._step(context, new, past)
            past += len(new[0])
            new = [[token] for token in next_tokens]
            for each, token in zip(found, next_tokens, strict=True):
                each.append(token)
            stamp()
        return found

    def nats(self, windows: Prompts) -> list[float]:
        found = []
        for window in windows:
            context = self._context(1, len(window))
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
            self._step(context, [window], 0, every=True)
            rows = np.stack([self._logits(context, row) for row in range(len(window) - 1)])
            found.append(nats_of(rows, window[1:]))
        return found

    def _context(self, batch: int, length: int) -> llama_cpp.llama_context_p:
        if (batch, length) not in self._contexts:
            params = llama_cpp.llama_context_default_params()
            params.n_seq_max, params.n_ctx = batch, batch * -(-length // 256) * 256  # it rounds a sequence up to 256
            params.n_batch, params.n_ubatch = _STEP_TOKENS, _UBATCH
            params.n_threads = params.n_threads_batch = self._threads
            self._contexts[batch, length] = llama_cpp.llama_init_from_model(self._model, params)
        return self._contexts[batch, length]

    def _step(self, context: llama_cpp.llama_context_p, new: Prompts, past: int, every: bool = False) -> list[int]:
        batch, last, place = self._batch, [], 0
        for sequence, tokens in enumerate(new):
            for offset, token in enumerate(tokens):
                batch.token[place], batch.pos[place] = token, past + offset
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
                batch.logits[place] = every or offset == len(tokens) - 1
                place += 1
            last.append(place - 1)
        batch.n_tokens = place
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        return [int(self._logits(context, row).argmax()) for row in last]

    def _logits(self, context: llama_cpp.llama_context_p, row: int) -> np.ndarray:
        address = llama_cpp.llama_get_logits_ith(context, row)
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (self._vocab_size,))


if __name__ == "__main__":
    main(convert, LlamaCpp)
