"""`make serving-peers`: NVIDIA's load tools on a server of ours, and what they measured. Status 1 if one fails."""

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
from trtllm_pt.serving.front import Front
from trtllm_pt.serving.repository import write_repository
from trtllm_pt.serving.server import Address, Server

REQUESTS = 40
STREAM = "v2/models/tensorrt_llm_bls/generate_stream"
TRITON = ["--backend", "tensorrtllm"]  # by gRPC


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", type=Path)
    parser.add_argument("genai_perf", type=Path, help="its program")
    arguments = parser.parse_args()
    address = Address.free()
    openai = Address.free().http
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_repository(arguments.engines, scratch / "repository")
        environment = perf_analyzer(scratch)
        with Server(scratch / "repository", address, scratch / "log") as server:
            server.wait_until_ready()
            grpc = f"127.0.0.1:{address.grpc}"
            with Front(arguments.engines, "demo", grpc).listening("127.0.0.1", openai):
                doors = {
                    "tensorrt_llm_bls, gRPC": ["-m", "tensorrt_llm_bls", *TRITON, "-u", grpc],
                    "ensemble, gRPC": ["-m", "ensemble", *TRITON, "-u", grpc],
                    "tensorrt_llm_bls, generate_stream": [
                        *["-m", "tensorrt_llm_bls", "--endpoint-type", "generate", "--endpoint", STREAM],
                        *["-u", f"127.0.0.1:{address.http}"],
                    ],
                    "OpenAI's completions": [
                        "-m",
                        "demo",
                        "--endpoint-type",
                        "completions",
                        "-u",
                        f"127.0.0.1:{openai}",
                    ],
                }
                rows = []
                for number, (door, words) in enumerate(doors.items()):
                    artifacts = scratch / f"door{number}"
                    print(f"genai-perf: {door} …", file=sys.stderr)
                    command = [
                        str(arguments.genai_perf),
                        "profile",
                        *words,
                        *options(arguments.engines, artifacts),
                    ]
                    rows.append([door, *profile(command, artifacts, environment)])
            status = server.close()
    print(table(rows, ["genai-perf", "requests", "TTFT ms", "between tokens ms", "tokens/s"]))
    print(f"the server ended with status {status}")
    sys.exit(1 if status else 0)


def perf_analyzer(scratch: Path) -> dict[str, str]:
    """An environment with the wheel's perf_analyzer and two libraries, which another wheel has under hashed names."""
    packages = Path(sys.prefix) / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    libraries = packages / "nvidia_pytriton.libs"
    for pattern, name in (("libb64-*.so.0d", "libb64.so.0d"), ("libcudart-*.so.12*", "libcudart.so.12")):
        (scratch / name).symlink_to(next(libraries.glob(pattern)))
    path = os.pathsep.join((str(Path(sys.prefix) / "bin"), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": str(scratch)}


def options(engines: Path, artifacts: Path) -> list[str]:
    words = ["--streaming", "--tokenizer", str(engines.resolve() / "tokenizer"), "--artifact-dir", str(artifacts)]
    words += ["--synthetic-input-tokens-mean", "40", "--output-tokens-mean", "32"]
    return [*words, "--concurrency", "4", "--request-count", str(REQUESTS)]


def profile(command: list[str], artifacts: Path, environment: dict[str, str]) -> Iterator[object]:
    """What genai-perf found. Ends this program where it failed, or not all requests were answered."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    found = next(artifacts.rglob("*_genai_perf.json"), None)
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
