"""OpenVINO GenAI: its pipeline with continuous batching, computing in bfloat16 and keeping keys and values in it.

Where OpenVINO does not support bfloat16 (without AVX512), it computes in float32 and keeps them in float16.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino
import openvino_genai
from side import Prompts, group_size, main, nats_of

_MOST_SEQUENCES, _STEP_TOKENS, _CACHE_GB = 16, 2048, 1


def convert(source: Path, target: Path, bits: str = "") -> None:
    """Weights stay 16 bits wide: left to itself, the export makes int8 of those of a model of 1B and more.

    bits: 8, with a scale per output, or 4, with groups of 128 (64 where 128 does not divide); both are symmetric.
    """
    from optimum.exporters.openvino import main_export
    from optimum.intel import OVConfig, OVWeightQuantizationConfig

    quantized = OVConfig(dtype="fp16")
    if bits:
        groups = {"group_size": group_size(source)} if bits == "4" else {}
        quantized = OVConfig(quantization_config=OVWeightQuantizationConfig(bits=int(bits), sym=True, **groups))
    main_export(
        str(source),
        target,
        task="text-generation-with-past",
        stateful=True,
        convert_tokenizer=False,
        ov_config=quantized,
    )


class OpenVino:
    version = openvino_genai.__version__

    def __init__(self, folder: str, threads: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = _CACHE_GB
        scheduler.max_num_batched_tokens = _STEP_TOKENS
        scheduler.max_num_seqs = _MOST_SEQUENCES
        scheduler.enable_prefix_caching = False
        scheduler.dynamic_split_fuse = False
        bfloat16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._folder = folder
        self._properties = {
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
            "KV_CACHE_PRECISION": "bf16" if bfloat16 else "f16",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", self._properties)

    def generate(self, prompts: Prompts, tokens: int, stamp: Callable[[], None]) -> list[list[int]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos, config.do_sample = True, False
        config.set_eos_token_id(0)  # ignored, but it must be one
        handles = [
            self._pipeline.add_request(number, openvino.Tensor(np.array([prompt], np.int64)), config)
            for number, prompt in enumerate(prompts)
        ]
        for _ in range(tokens):
            self._pipeline.step()
            stamp()
        return [list(handle.read_all()[0].generated_ids) for handle in handles]

    def nats(self, windows: Prompts) -> list[float]:
        """The pipeline gives no log-probs of a prompt, so the model is compiled once more, without it."""
        model = openvino.Core().compile_model(f"{self._folder}/openvino_model.xml", "CPU", self._properties)
        request, found = model.create_infer_request(), []
        for window in windows:
            request.reset_state()
            ones, places = np.ones((1, len(window)), np.int64), np.arange(len(window))[None]
            ids = np.array([window], np.int64)
            request.infer(
                {"input_ids": ids, "attention_mask": ones, "position_ids": places, "beam_idx": np.zeros(1, np.int32)}
            )
            found.append(nats_of(request.get_tensor("logits").data[0, :-1], window[1:]))
        return found


if __name__ == "__main__":
    main(convert, OpenVino)
