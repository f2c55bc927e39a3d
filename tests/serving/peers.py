"""`make serving-peers`: load tools of NVIDIA and of vLLM's project on a server of ours, and what they measured.

The exit status is 1 if one fails, or if a request does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trtllm_pt.cli.text import table
from trtllm_pt.serving.openai.app import OpenAIServer
from trtllm_pt.serving.triton.repository import write_repository
from trtllm_pt.serving.triton.server import Address, Server

REQUESTS = 40
PROMPT_TOKENS, NEW_TOKENS, AT_A_TIME = 40, 32, 4
STREAM = "v2/models/tensorrt_llm_bls/generate_stream"
BODY = '{"text_input": {{ text|tojson }}, "max_tokens": {{ max_tokens }}, "stream": {{ stream|tojson }}}'
TRITON = ["--backend", "tensorrtllm"]  # by gRPC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", type=Path)
    parser.add_argument("genai_perf", type=Path, help="its program")
    parser.add_argument("aiperf", type=Path, help="its program")
    parser.add_argument("guidellm", type=Path, help="its program")
    arguments = parser.parse_args()
    address = Address.free()
    openai = Address.free().http
    tokenizer = ["--tokenizer", str(arguments.engines.resolve() / "tokenizer"), "--streaming"]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_repository(arguments.engines, scratch / "repository")
        (scratch / "body.jinja").write_text(BODY)
        environment = perf_analyzer(scratch)
        with Server(scratch / "repository", address, scratch / "log") as server:
            server.wait_until_ready()
            with OpenAIServer(arguments.engines, "demo", f"127.0.0.1:{address.grpc}").listening("127.0.0.1", openai):
                rows = []
                endpoints = [
                    *genai_perf_endpoints(arguments.genai_perf, address, openai),
                    *aiperf_endpoints(arguments.aiperf, address, openai, scratch / "body.jinja"),
                ]
                for number, (tool, endpoint, words) in enumerate(endpoints):
                    print(f"{tool}: {endpoint} …", file=sys.stderr)
                    artifacts = scratch / f"endpoint{number}"
                    command = [*words, *tokenizer, "--artifact-dir", str(artifacts)]
                    command += ["--concurrency", str(AT_A_TIME), "--request-count", str(REQUESTS)]
                    rows.append([tool, endpoint, *profile(command, artifacts, environment)])
                print("guidellm: OpenAI's completions …", file=sys.stderr)
                found = guidellm(arguments.guidellm, arguments.engines, openai, scratch / "guidellm.json")
                rows.append(["guidellm", "OpenAI's completions", *found])
            status = server.close()
    print(table(rows, ["tool", "endpoint", "requests", "TTFT ms", "between tokens ms", "tokens/s"]))
    print(f"the server ended with status {status}")
    sys.exit(1 if status else 0)


def genai_perf_endpoints(program: Path, address: Address, openai: int) -> Iterator[tuple[str, str, list[str]]]:
    lengths = ["--synthetic-input-tokens-mean", str(PROMPT_TOKENS), "--output-tokens-mean", str(NEW_TOKENS)]
    grpc, http = f"127.0.0.1:{address.grpc}", f"127.0.0.1:{address.http}"
    endpoints = {
        "tensorrt_llm_bls, gRPC": ["-m", "tensorrt_llm_bls", *TRITON, "-u", grpc],
        "ensemble, gRPC": ["-m", "ensemble", *TRITON, "-u", grpc],
        "tensorrt_llm_bls, generate_stream": [
            *["-m", "tensorrt_llm_bls", "--endpoint-type", "generate", "--endpoint", STREAM, "-u", http]
        ],
        "OpenAI's completions": ["-m", "demo", "--endpoint-type", "completions", "-u", f"127.0.0.1:{openai}"],
    }
    for endpoint, words in endpoints.items():
        yield "genai-perf", endpoint, [str(program), "profile", *words, *lengths]


def aiperf_endpoints(program: Path, address: Address, openai: int, body: Path) -> Iterator[tuple[str, str, list[str]]]:
    lengths = ["--isl", str(PROMPT_TOKENS), "--osl", str(NEW_TOKENS), "--ui", "none"]
    template = ["--extra-inputs", f"payload_template:{body}", "--extra-inputs", "response_field:text_output"]
    endpoints = {
        "tensorrt_llm_bls, generate_stream": [
            *["-m", "tensorrt_llm_bls", "--endpoint-type", "template", "--endpoint", f"/{STREAM}"],
            *["-u", address.url, *template],
        ],
        "OpenAI's completions": ["-m", "demo", "--endpoint-type", "completions", "-u", f"http://127.0.0.1:{openai}"],
    }
    for endpoint, words in endpoints.items():
        yield "aiperf", endpoint, [str(program), "profile", *words, *lengths]


def guidellm(program: Path, engines: Path, openai: int, report: Path) -> Iterator[object]:
    """What guidellm found. Ends this program where it failed, or a request did."""
    options = {
        "backend": f"openai_http,target=http://127.0.0.1:{openai},model=demo,request_format=/v1/completions",
        "profile": f"concurrent,streams={AT_A_TIME}",
        "constraint": f"max_requests,count={REQUESTS}",
        "tokenizer": f"huggingface_auto,model={engines.resolve() / 'tokenizer'}",
        "data": f"synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={NEW_TOKENS}",
        "output": f"json,path={report}",
    }
    command = [str(program), "run", "--disable-console"]
    command += [word for name, value in options.items() for word in (f"--{name}", f"kind={value}")]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode or not report.exists():
        sys.exit(f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-6000:]}")
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    totals = metrics["request_totals"]
    if totals["successful"] < REQUESTS or totals["errored"] or totals["incomplete"]:
        sys.exit(f"{' '.join(command)}\nof the requests, {totals}")
    yield totals["successful"]
    for name in ("time_to_first_token_ms", "inter_token_latency_ms", "output_tokens_per_second"):
        yield f"{metrics[name]['successful']['mean']:.1f}"


def perf_analyzer(scratch: Path) -> dict[str, str]:
    """An environment with the wheel's perf_analyzer and two libraries, which another wheel has under hashed names."""
    packages = Path(sys.prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    libraries = packages / "nvidia_pytriton.libs"
    for pattern, name in (("libb64-*.so.0d", "libb64.so.0d"), ("libcudart-*.so.12*", "libcudart.so.12")):
        (scratch / name).symlink_to(next(libraries.glob(pattern)))
    path = os.pathsep.join((str(Path(sys.prefix) / "bin"), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": str(scratch)}


def profile(command: list[str], artifacts: Path, environment: dict[str, str]) -> Iterator[object]:
    """What a tool found. Ends this program where it failed, or not all requests were answered."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    found = next(artifacts.rglob("profile_export*_*perf.json"), None)
    if done.returncode or found is None:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-6000:]}")
    figures = json.loads(found.read_text())
    count = int(figures["request_count"]["avg"])
    if count < REQUESTS:
        sys.exit(f"{' '.join(command)}\nonly {count} of {REQUESTS} requests were answered")
    yield count
    for name in ("time_to_first_token", "inter_token_latency", "output_token_throughput"):
        yield f"{figures[name]['avg']:.1f}"


if __name__ == "__main__":
    main()
