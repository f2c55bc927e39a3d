"""`make eval-peers`: lm-evaluation-harness scores our engines, and the same models in vLLM and in transformers.

    python -m tests.evaluation.peers build/eval-peers/bin/lm_eval build/vllm-cpu/bin/python

It prints the scores of both side by side, with those of `trtllm-pt eval`. The exit status is 1 if they differ by more
than 1e-6 in float32, and if the trained model's bits per byte, rounded, are not those in its card.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trtllm_pt.backends.build import build
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.cli.text import table
from trtllm_pt.evaluation.evaluate import predict
from trtllm_pt.runtime.llm import LLM
from trtllm_pt.serving.direct_http import open_directly
from trtllm_pt.serving.triton.server import free_ports
from trtllm_pt.text.documents import read_texts

TASKS = Path(__file__).parent / "tasks"
PRETRAINED = Path(__file__).parents[2] / "pretrained" / "stdlib-pt"
METRICS = {  # task: its metrics
    "trtllm_pt_texts": ("bits_per_byte",),
    "trtllm_pt_lines": ("acc", "acc_norm"),
    "trtllm_pt_rest_of_line": ("exact_match",),
}
CONTEXT = 254  # tokens; of the API's max_length the harness keeps one token for the answer, and one for the context
TOLERANCE = 1e-6  # of float32

Scores = Mapping[str, float]  # by metric


@dataclass(frozen=True)
class Harness:
    """The program lm_eval, and a folder for its results."""

    program: Path
    scratch: Path

    def local_completions(self, url: str, tokenizer: Path, tasks: Mapping[str, Any]) -> Scores:
        """Scores through OpenAI's endpoint of a server, which gets token ids."""
        options = {
            "model": "demo",
            "base_url": f"{url}/v1/completions",
            "num_concurrent": 4,
            "tokenized_requests": True,
            "tokenizer": tokenizer,
            "max_length": CONTEXT + 2,
        }
        return self._run("local-completions", options, tasks)

    def our_server(self, engines: Path, tasks: Mapping[str, Any]) -> Scores:
        with serving(engines) as url:
            return self.local_completions(url, engines / "tokenizer", tasks)

    def vllm(self, python: Path, tasks: Mapping[str, Any]) -> Scores:
        """Scores of the trained model through vLLM's server, run by the Python of its environment."""
        with serving_by_vllm(python) as url:
            return self.local_completions(url, PRETRAINED, tasks)

    def transformers(self, model: Path, tasks: Mapping[str, Any]) -> Scores:
        options = {"pretrained": model, "dtype": "float32", "max_length": CONTEXT, "trust_remote_code": True}
        return self._run("hf", options, tasks, "--device", "cpu", "--batch_size", "4")

    def _run(self, door: str, options: Mapping[str, Any], tasks: Mapping[str, Any], *more: str) -> Scores:
        output = Path(tempfile.mkdtemp(dir=self.scratch))
        command = [self.program, "--model", door, "--tasks", ",".join(tasks), "--include_path", ".", *more]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in options.items())]
        command += ["--output_path", output]
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(self.scratch)}
        done = subprocess.run(
            [str(word) for word in command], cwd=TASKS, env=offline, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"lm_eval with {door} exited with status {done.returncode}:\n{done.stderr[-2000:]}")
        [report] = output.rglob("results*.json")
        results = json.loads(report.read_text())["results"]
        return {metric: results[task][f"{metric},none"] for task, metrics in tasks.items() for metric in metrics}


def serving(engines: Path) -> AbstractContextManager[str]:
    """A server over the engines; the address of its OpenAI port."""
    http, grpc, metrics, port = free_ports(4)
    ports = {"--http-port": http, "--grpc-port": grpc, "--metrics-port": metrics, "--openai-port": port}
    command = [sys.executable, "-m", "trtllm_pt", "serve", engines, "--served-model-name", "demo"]
    return _running([*command, *(word for pair in ports.items() for word in pair)], port)


def serving_by_vllm(python: Path) -> AbstractContextManager[str]:
    """vLLM's server over the trained model, on 2 ranks in float32; the address of its OpenAI port."""
    [port] = free_ports(1)
    options = {"--model": PRETRAINED, "--served-model-name": "demo", "--dtype": "float32", "--port": port}
    options |= {"--tensor-parallel-size": 2, "--max-num-batched-tokens": 2 * CONTEXT}  # so that memory suffices
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *(word for pair in options.items() for word in pair)]
    return _running(command, port, {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"})


@contextmanager
def _running(command: Sequence[object], port: int, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    with subprocess.Popen([str(word) for word in command], env={**os.environ, **(settings or {})}) as server:
        try:
            _wait_until_healthy(server, f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)


def _wait_until_healthy(server: subprocess.Popen[bytes], url: str) -> None:
    while server.poll() is None:
        try:
            open_directly(url, 5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"the server exited with status {server.returncode}")


def write_texts(folder: Path) -> list[Path]:
    """Write the texts of the task trtllm_pt_texts, a file for each."""
    paths = []
    for number, line in enumerate((TASKS / "texts.jsonl").read_text().splitlines()):
        paths.append(folder / f"{number:02}.txt")
        paths[-1].write_text(json.loads(line)["text"])
    return paths


def own_score(engines: Path, scratch: Path) -> Scores:
    """Bits per byte by `trtllm-pt eval`, of the same texts."""
    texts = write_texts(Path(tempfile.mkdtemp(dir=scratch)))
    with LLM(engines) as llm:
        found = predict(llm, read_texts(llm.tokenizer, llm.end_id, texts), CONTEXT, CONTEXT)
    return {"bits_per_byte": float(found.summary()["bits_per_byte"])}


def card_score() -> float:
    """Bits per byte of the same texts in the trained model's card, which has three digits after the point."""
    card = (PRETRAINED / "README.md").read_text()
    [found] = re.findall(r"`make eval-peers` measures (\d\.\d{3}) bits per byte", card)
    return float(found)


def built(model: Path, scratch: Path, ranks: int, dtype: str) -> Path:
    name = f"{model.name}-{ranks}-{dtype}"
    convert(model, scratch / f"checkpoint-{name}", ranks=ranks, dtype=dtype)
    build(scratch / f"checkpoint-{name}", scratch / name, engine="embedded")
    return scratch / name


def random_llama(scratch: Path) -> Path:
    """A small model of transformers' own, with the tokenizer of the trained one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    folder = scratch / "random-llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((PRETRAINED / name).read_bytes())
    return folder


def exported(engines: Path, scratch: Path) -> Path:
    """The model directory that `trtllm-pt export` makes of the engines' checkpoint."""
    checkpoint, output = engines.with_name(f"checkpoint-{engines.name}"), scratch / "exported"
    command = [sys.executable, "-m", "trtllm_pt", "export", str(checkpoint), "-o", str(output)]
    subprocess.run(command, check=True)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lm_eval", type=Path, help="the program")
    parser.add_argument("vllm_python", type=Path, help="the Python of an environment with vLLM and this package")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        harness = Harness(args.lm_eval.absolute(), scratch)
        groups: dict[str, dict[str, Scores]] = {}
        for ranks in (1, 2):
            engines = built(PRETRAINED, scratch, ranks, "float32")
            scores = groups.setdefault("stdlib-pt", {})
            scores[f"our server, {ranks} ranks"] = harness.our_server(engines, METRICS)
            scores[f"trtllm-pt eval, {ranks} ranks"] = own_score(engines, scratch)
        groups["stdlib-pt"]["vLLM, 2 ranks"] = harness.vllm(args.vllm_python, METRICS)
        groups["stdlib-pt"]["transformers"] = harness.transformers(exported(engines, scratch), METRICS)
        low = built(PRETRAINED, scratch, 2, "bfloat16")
        llama = random_llama(scratch)
        tasks = {task: METRICS[task] for task in ("trtllm_pt_texts", "trtllm_pt_lines")}
        groups["random Llama"] = {
            "our server, 2 ranks": harness.our_server(built(llama, scratch, 2, "float32"), tasks),
            "transformers": harness.transformers(llama, tasks),
        }
        for scores in groups.values():
            failed |= largest_difference(scores) > TOLERANCE
        groups["stdlib-pt"]["our server, 2 ranks, bfloat16"] = harness.our_server(low, METRICS)
        failed |= {round(scores["bits_per_byte"], 3) for scores in groups["stdlib-pt"].values()} != {card_score()}
    print_scores(groups)
    sys.exit(1 if failed else 0)


def largest_difference(scores: Mapping[str, Scores]) -> float:
    spread = 0.0
    for metric in {metric for one in scores.values() for metric in one}:
        values = [one[metric] for one in scores.values() if metric in one]
        spread = max(spread, max(values) - min(values))
    return spread


def print_scores(groups: Mapping[str, Mapping[str, Scores]]) -> None:
    metrics = [metric for metrics in METRICS.values() for metric in metrics]
    rows = [
        [model, scorer, *(f"{scores[m]:.8f}" if m in scores else "" for m in metrics)]
        for model, group in groups.items()
        for scorer, scores in group.items()
    ]
    print(table(rows, ["model", "scored through", *metrics], left=2))


if __name__ == "__main__":
    main()
