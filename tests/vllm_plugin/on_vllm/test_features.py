"""What vLLM's users expect of any model, on one rank: dtypes, quantised matrices, drafts, random weights."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from tests.checkpoint.models import saved
from tests.configs import PRETRAINED
from tests.vllm_plugin.on_vllm.models import RANDOM, folder_of
from tests.vllm_plugin.on_vllm.quantized import SCHEMES, quantized
from trtllm_pt.checkpoint.load import load_reference

pytest.importorskip("vllm", reason="make test-vllm")

_TOKENIZER = Tokenizer.from_file(str(PRETRAINED / "tokenizer.json"))
TEXT = _TOKENIZER.encode((PRETRAINED / "heldout.txt").read_text()).ids[:160]


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


@contextmanager
def engine(folder: Path, **options: Any) -> Iterator[Any]:
    import vllm
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    defaults = {"max_model_len": 256, "enforce_eager": True, "skip_tokenizer_init": True, "dtype": "float32", "seed": 0}
    llm = vllm.LLM(str(folder), **defaults | options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def logprobs_of_text(llm: Any) -> torch.Tensor:
    """The log-probability of each token of TEXT but the first."""
    import vllm

    sampling = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": TEXT}], sampling, use_tqdm=False)
    steps = zip(output.prompt_logprobs[1:], TEXT[1:], strict=True)
    return torch.tensor([step[token].logprob for step, token in steps])


def expected(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        logits = load_reference(folder)(torch.tensor([TEXT[:-1]]))[0]
    return logits.log_softmax(-1)[range(len(TEXT) - 1), TEXT[1:]]


# Each bound is a few times what was seen. Float16 keeps three bits more than bfloat16.
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("float16", 0.01), ("bfloat16", 0.06)])
def test_dtype(dtype: str, most: float) -> None:
    with engine(PRETRAINED, dtype=dtype) as llm:
        difference = logprobs_of_text(llm) - expected(PRETRAINED)
    assert difference.abs().mean() < most


@pytest.mark.parametrize("inputs", [64, 48])  # 48 columns cannot be packed
def test_batched_product(inputs: int) -> None:
    """With bfloat16, matrices are packed for processors that have AMX. The tracks share x, or each has its own."""
    from trtllm_pt.vllm_plugin.layers import BatchedLinear

    layer, draw = BatchedLinear(4, inputs, [32, 64], bias=True).bfloat16(), torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.normal_(generator=draw)
    weight, bias = layer.weight.float(), layer.bias.float()
    layer.quant_method.process_weights_after_loading(layer)
    assert layer.quant_method.packed == (torch.cpu._is_amx_tile_supported() and inputs == 64)
    for shape in ((1, 1, inputs), (1, 40, inputs), (4, 1, inputs), (4, 40, inputs)):
        x = torch.randn(shape, generator=draw).bfloat16()
        expected = torch.matmul(x.float(), weight.mT) + bias[:, None]
        torch.testing.assert_close(layer(x).float(), expected, rtol=0.02, atol=0.2)  # of sums of about 8, in bfloat16


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stored_quantized(tmp_path: Path, scheme: str) -> None:
    """vLLM's own layers multiply with the quantised matrices; a float32 model with the same rounded values agrees."""
    quantized(PRETRAINED, scheme, tmp_path / "stored", tmp_path / "rounded")
    with engine(tmp_path / "stored", dtype="bfloat16") as llm:
        found = logprobs_of_text(llm)
    rounded, exact = expected(tmp_path / "rounded"), expected(PRETRAINED)
    assert (found - rounded).abs().mean() < 0.1
    assert (rounded - exact).abs().mean() > 1e-3  # it is another model, and vLLM's is nearer to it
    assert (found - rounded).abs().mean() < (found - exact).abs().mean()


BENCHMARK = """
import sys
from vllm.benchmarks import {name} as benchmark
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
benchmark.add_cli_args(parser)
benchmark.main(parser.parse_args(sys.argv[1:]))
"""


def benchmark(name: str, report: Path, options: str) -> dict[str, Any]:
    """The report of `vllm bench NAME`, whose command line is not installed with vllm-cpu."""
    options += f" --dtype float32 --max-model-len 64 --enforce-eager --output-json {report}"
    command = [sys.executable, "-c", BENCHMARK.format(name=name), *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_latency_by_vllm(tmp_path: Path) -> None:
    """It draws token ids below 10000, whatever the vocabulary is."""
    saved(RANDOM["pt"].replace(vocab_size=10000), tmp_path / "model")
    options = f"--model {tmp_path / 'model'} --skip-tokenizer-init --batch-size 2 --num-iters-warmup 1 --num-iters 2"
    options += " --input-len 16 --output-len 8"
    found = benchmark("latency", tmp_path / "report.json", options)
    assert len(found["latencies"]) == 2 and min(found["latencies"]) > 0


def test_throughput_by_vllm(tmp_path: Path) -> None:
    options = f"--model {PRETRAINED} --num-prompts 4 --dataset-name random --random-input-len 16 --random-output-len 8"
    found = benchmark("throughput", tmp_path / "report.json", options)
    assert found["num_requests"] == 4 and found["total_num_tokens"] == 4 * (16 + 8)


def test_random_weights_need_no_files(tmp_path: Path) -> None:
    folder = folder_of("everything", tmp_path)
    (folder / "model.safetensors").unlink()
    with engine(folder, load_format="dummy", max_model_len=64) as llm:
        import vllm

        sampling = vllm.SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False)
        (output,) = llm.generate([{"prompt_token_ids": [1, 2, 3]}], sampling, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 4


# The last test, because vLLM 0.32 cannot start another engine in a process that has loaded numba for its drafts.
def test_drafts_from_the_prompt_change_nothing() -> None:
    import vllm

    prompt, tokens = TEXT[:40] * 2, 32
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 2}
    sampling = vllm.SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    with engine(PRETRAINED, speculative_config=drafts, disable_log_stats=False) as llm:
        (output,) = llm.generate([{"prompt_token_ids": prompt}], sampling, use_tqdm=False)
        counters = {metric.name: getattr(metric, "value", 0) for metric in llm.get_metrics()}
    found = list(output.outputs[0].token_ids)
    with torch.no_grad():
        logits = load_reference(PRETRAINED)(torch.tensor([prompt + found]))[0, len(prompt) - 1 : -1]
    assert found == logits.argmax(-1).tolist()
    assert counters["vllm:spec_decode_num_accepted_tokens"] > 0
