"""Check TensorRT engines on NVIDIA GPUs: `make gpu-check`.

1. The trained model in pretrained/, plain and quantised, and a model with sliding windows run through `convert`,
   `build` and `LLM`. Two of the prompts have one long beginning in common. The log-probs of the outputs are compared
   with those of the reference network, which has the same (dequantised) weights in float32.
2. A PT model with random weights is timed beside its dense twin of equal size under tensor parallelism.

    python3 benchmarks/gpu_check.py [--ranks 8] [--model pt-6b] [--cases '1,512,128;32,512,128'] [--rounds 2]
    python3 benchmarks/gpu_check.py --engine tensorrt [--ranks 1 2 4 8] …

With TensorRT-LLM, inside its container and on all GPUs, both are timed with NCCL and with AUTO all-reduces, and
TensorRT-LLM's own LlamaForCausalLM (AUTO, reduce fusion) with the weights of the twin beside them. With native
TensorRT, which needs the package tensorrt on GPUs of data centres, they are timed on each of 1, 2, 4 and 8 GPUs.

Every step is a command, which is printed and can be run by hand. Checkpoints and engines are kept in build/gpu-check
and used again. `--engine embedded` rehearses everything that does not need a GPU.
"""

from __future__ import annotations

import argparse
import ast
import gc
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtllm_pt.backends import inspect, read_engine
from trtllm_pt.bench.static_batch import Case, Prompts, run_batch
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.model import cost
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.presets import preset
from trtllm_pt.requests.messages import SamplingParams

ROOT = Path(__file__).parents[1]
PRETRAINED = ROOT / "pretrained" / "stdlib-pt"
# Largest error of a log-prob in nats. bfloat16 alone changes logits by up to 0.3, a wrong order of weights by several.
LIMITS = {None: 0.5, "W8A16": 0.5, "W4A16": 0.5, "FP8": 1.5}
TOKENS = 48  # output tokens of every text that is compared
WINDOWED = "windowed"  # a model that this script makes
WARM_UP, RUNS = 2, 5
RANKS = (1, 2, 4, 8)
STOCK = "LlamaForCausalLM"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine that is checked or timed."""

    title: str
    model: str  # a preset, or a MODEL_DIR
    strategy: str = "NCCL"
    quantize: str | None = None
    stock: bool = False  # TensorRT-LLM's own network, from the same files
    timed: bool = True

    @property
    def checkpoint(self) -> str:
        return "-".join(filter(None, (Path(self.model).name, self.quantize)))

    @property
    def engines(self) -> str:
        return f"{self.checkpoint}-{STOCK if self.stock else self.strategy}"

    def folder(self, engine: str) -> str:
        """Return the beginning of the name of its engines' directory."""
        return self.engines if engine == "tensorrt_llm" else f"{self.checkpoint}-{engine}"


@dataclass(frozen=True, slots=True)
class Machine:
    """The GPUs of this machine, with their memory in bytes. Capability 90 is Hopper."""

    gpus: int
    name: str
    memory: int
    capability: int


def here(engine: str) -> Machine:
    """Describe this machine. Raises UsageError if it has no GPU."""
    import torch

    if engine == "embedded":
        return Machine(os.cpu_count() or 1, "CPU", 8 << 30, 0)
    if not torch.cuda.device_count():
        raise UsageError("gpu_check needs NVIDIA GPUs; --engine embedded rehearses it without them")
    gpu = torch.cuda.get_device_properties(0)
    return Machine(torch.cuda.device_count(), gpu.name, gpu.total_memory, 10 * gpu.major + gpu.minor)


def subjects(machine: Machine, engine: str, ranks: int, model: str, twin: str) -> list[Subject]:
    """Return all engines that this machine can build, the trained model first."""
    trained = str(PRETRAINED)
    found = [Subject(title=name, model=path, timed=False) for name, path in (("stdlib-pt", trained), 2 * (WINDOWED,))]
    timed = [Subject(title="PT", model=model), Subject(title="TP", model=twin)]
    if engine == "embedded":
        return [*found, *timed]
    if engine == "tensorrt":
        algorithms = ["W4A16"]
        if ranks == ModelConfig.from_file(PRETRAINED / "config.json").tracks:  # these need one track per rank
            algorithms += ["W8A16", "FP8"] if machine.capability >= 89 else ["W8A16"]
        return [*found, *(_quantised(algo) for algo in algorithms), *timed]
    strategies = ("NCCL", "AUTO") if ranks > 1 else ("NCCL",)
    if ranks > 1:
        found.append(Subject(title="stdlib-pt, AUTO", model=trained, strategy="AUTO", timed=False))
    algorithms = [] if 100 <= machine.capability < 120 else ["W8A16", "W4A16"]
    algorithms += ["FP8"] if machine.capability >= 89 else []
    found += [_quantised(algo) for algo in algorithms]
    found += [Subject(title=f"PT, {strategy}", model=model, strategy=strategy) for strategy in strategies]
    found += [Subject(title=f"TP, {strategy}", model=twin, strategy=strategy) for strategy in strategies]
    fusion = "AUTO, reduce fusion" if ranks > 1 else "one rank"
    return [*found, Subject(title=f"{STOCK}, {fusion}", model=twin, strategy="AUTO", stock=True)]


def _quantised(algo: str) -> Subject:
    return Subject(title=f"stdlib-pt, {algo}", model=str(PRETRAINED), quantize=algo, timed=False)


def default_model(machine: Machine, ranks: int) -> str:
    """Return the largest preset whose weights leave most of a GPU for building and for the KV cache."""
    for name in ("pt-6b", "pt-150m"):
        if 4 * cost.bytes_per_rank(preset(name), ranks, "bfloat16") < machine.memory:
            return name
    return "pt-tiny"


def twin_of(model: str) -> str:
    """Return the dense preset of equal size: dense-6b for pt-6b-d8. Raises UsageError if there is none."""
    preset(model)
    twin = "-".join(["dense", *model.split("-")[1:2]])
    preset(twin)
    return twin


def cases_of(text: str) -> list[Case]:
    """Read `1,512,128;32,512,128`: sequences in a batch, tokens of a prompt, tokens of an output."""
    try:
        cases = [Case(*(int(word) for word in part.split(","))) for part in text.split(";")]
    except (TypeError, ValueError):
        cases = []
    if not cases or min(min(c.batch_size, c.input_length, c.output_length - 1) for c in cases) < 1:
        raise UsageError(f"--cases ({text!r}) must be BATCH,IN,OUT with OUT at least 2, separated by ';'")
    return cases


# --- building: the commands of the documentation


def run(*command: object) -> None:
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    try:
        done = subprocess.run(words, check=False)
    except OSError as error:
        raise UsageError(
            f"{words[0]} cannot be run ({error.strerror}); run gpu_check in TensorRT-LLM's container"
        ) from None
    if done.returncode:
        raise RunError(f"`{' '.join(words)}` exited with status {done.returncode}")


def make_checkpoint(subject: Subject, engine: str, ranks: int, folder: Path) -> Path:
    of = "" if engine == "tensorrt_llm" or subject.quantize != "FP8" else f"-{engine}"  # which has no FP8 KV cache
    path = folder / f"{subject.checkpoint}{of}-{ranks}.checkpoint"
    command = (sys.executable, "-m", "trtllm_pt")
    if path.exists():
        return path
    if subject.model == WINDOWED:
        run(*command, "convert", windowed_model(folder / WINDOWED), "-o", path, "--ranks", ranks)
        return path
    if not Path(subject.model).is_dir():
        run(*command, "init", subject.model, "-o", path, "--ranks", ranks)
        return path
    how: list[object] = ["--quantize", subject.quantize] if subject.quantize else []
    if subject.quantize == "FP8":
        text = folder / "calibration.txt"
        text.write_text(Path(argparse.__file__).read_text())
        how += ["--calibrate", text]
        how += ["--kv-cache", "FP8"] if engine == "tensorrt_llm" else []
    run(*command, "convert", subject.model, "-o", path, "--ranks", ranks, *how)
    return path


def windowed_model(folder: Path, window: int = 40) -> Path:
    """Make a model with random weights and sharp attention, so that a window one token off changes its output."""
    import torch

    from trtllm_pt.checkpoint.load import save_model
    from trtllm_pt.model.tensors import tensors
    from trtllm_pt.network.reference import ReferenceModel

    config = preset("pt-tiny").replace(attention_pattern=("sliding", "global"), window=window)
    model, generator = ReferenceModel(config), torch.Generator().manual_seed(0)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for spec in tensors(config):
            if spec.kind == "norm":
                parameters[spec.name].fill_(1)
            else:
                std = 0.2 if spec.kind == "embedding" else spec.fan_in**-0.5 * (1.5 if "qkv" in spec.name else 1)
                parameters[spec.name].normal_(0, std, generator=generator)
    return save_model(model, folder, "bfloat16")


def stock_checkpoint(checkpoint: Path, output: Path) -> Path:
    """Make a checkpoint of TensorRT-LLM's LlamaForCausalLM, which has a dense model's names and shapes, from its files.

    The key `parallel_track` stays, which TensorRT-LLM ignores and our runtime reads from the engines.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    if config["parallel_track"]["model"]["schedule"] != "tp":
        raise UsageError(f"{checkpoint} is not a dense model under tensor parallelism, as {STOCK} is")
    output.mkdir(parents=True)
    for path in checkpoint.glob("rank*.safetensors"):
        (output / path.name).symlink_to(path.resolve())
    (output / "config.json").write_text(json.dumps(config | {"architecture": STOCK}, indent=2) + "\n")
    return output


def make_engines(subject: Subject, engine: str, ranks: int, cases: Sequence[Case], folder: Path) -> Path:
    checkpoint = make_checkpoint(subject, engine, ranks, folder)
    most = max(case.input_length + case.output_length for case in cases)
    batch = max(8, *(case.batch_size for case in cases))
    positions = positions_of(checkpoint)
    # Engines of an earlier run are used only if this run would build the same.
    path = folder / f"{subject.folder(engine)}-{ranks}-{batch}-{most}-{sources()}.engines"
    if path.exists():
        return path
    sizes = ["--max_batch_size", batch, "--max_seq_len", min(positions, max(most, 512)), "--max_num_tokens", 8192]
    if engine != "tensorrt_llm":
        run(sys.executable, "-m", "trtllm_pt", "build", checkpoint, "-o", path, "--engine", engine, *sizes)
        return path
    sizes += ["--gemm_plugin", "auto", "--workers", ranks]
    if not subject.stock:
        how = ["--engine", engine, "--all_reduce_strategy", subject.strategy]
        run(sys.executable, "-m", "trtllm_pt", "build", checkpoint, "-o", path, *how, *sizes)
        return path
    stock, partial = folder / f"{subject.engines}-{ranks}.checkpoint", path.with_suffix(".partial")
    for old in (stock, partial):
        shutil.rmtree(old, ignore_errors=True)
    fusion = ["--reduce_fusion", "enable"] if ranks > 1 else []
    run(
        "trtllm-build",
        "--checkpoint_dir",
        stock_checkpoint(checkpoint, stock),
        "--output_dir",
        partial,
        *fusion,
        *sizes,
    )
    partial.rename(path)
    return path


def sources() -> str:
    """Return a digest of the sources that engines are made with."""
    package = ROOT / "trtllm_pt"
    files = [*sorted((package / "network").glob("*.py")), *sorted((package / "backends").rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def positions_of(checkpoint: Path) -> int:
    positions: int = json.loads((checkpoint / "config.json").read_text())["max_position_embeddings"]
    return positions


# --- running, in a process per engine: what holds a GPU's memory ends with it


def prompts(vocab_size: int, has_tokenizer: bool) -> list[str | tuple[int, ...]]:
    """Return prompts shorter and longer than a page of the KV cache: Python, or random tokens without a tokenizer."""
    if not has_tokenizer:
        draw = Prompts(vocab_size)
        return [draw.draw(length) for length in (3, 45, 150)]
    source = Path(ast.__file__).read_text()
    return ["import os\n", "def binary_search(", source[:400], source[1000:3000]]


def texts(folder: Path) -> list[dict[str, Any]]:
    """Generate greedily in one batch, and then, with its KV cache full, for a prompt with a known beginning.

    Returns {prompt, output, log_probs} of each text.
    """
    from trtllm_pt import LLM

    sampling = SamplingParams(max_tokens=TOKENS, log_probs=True, end_id=-1)
    with LLM(folder) as llm:
        chosen = prompts(llm.manifest.model.vocab_size, llm.tokenizer is not None)
        encoded = [tuple(llm.encode(prompt)[: llm.manifest.max_seq_len - TOKENS]) for prompt in chosen]
        results = llm.generate(encoded, sampling)
        encoded.append(another_end(encoded[-1]))
        results += llm.generate(encoded[-1:], sampling)
    return [
        {"prompt": list(prompt), "output": list(result.token_ids), "log_probs": list(result.log_probs)}
        for prompt, result in zip(encoded, results, strict=True)
    ]


def another_end(prompt: tuple[int, ...]) -> tuple[int, ...]:
    """Return a prompt that differs from this one in its last tenth.

    An engine that reuses its KV cache computes the last tenth only. The rest is longer than the windowed model's window
    by several pages, so that reuse of a wrong page shows.
    """
    common = len(prompt) - len(prompt) // 10
    return prompt[:common] + prompt[: len(prompt) - common]


def timings(folder: Path, cases: Sequence[Case]) -> list[list[dict[str, float]]]:
    """Return the seconds of every run of each case."""
    from trtllm_pt.runtime.llm import start_runtime

    manifest = read_engine(folder)
    draw, runtime = Prompts(manifest.model.vocab_size), start_runtime(folder, manifest, None, None)
    try:
        found = []
        for case in cases:
            runs = [run_batch(runtime, draw.batch(case), case.output_length) for _ in range(WARM_UP + RUNS)]
            found.append([{"ttft": r.ttft, "tpot": r.tpot, "latency": r.latency} for r in runs[WARM_UP:]])
        return found
    finally:
        runtime.close()


def in_a_process(what: str, folder: Path, cases: str) -> Any:
    command = [sys.executable, __file__, "--do", what, str(folder), "--cases", cases]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RunError(f"running {folder} exited with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


# --- comparing


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well an engine's outputs agree with those of the reference network, in nats."""

    largest: float  # largest error of a log-prob
    mean: float
    missed: float  # the most by which a greedy token was below the reference's best one

    def holds(self, quantize: str | None) -> bool:
        return all(error <= LIMITS[quantize] for error in (self.largest, self.missed))  # false for NaN, too


def agreement(checkpoint: Path, outputs: Iterable[dict[str, Any]]) -> Agreement:
    """Compare the outputs with the reference network, which has the stored weights in float32."""
    import torch

    from trtllm_pt.checkpoint.load import load_reference

    device = "cuda" if torch.cuda.device_count() else "cpu"
    model = load_reference(checkpoint, torch.float32).to(device)
    errors, missed = [], []
    with torch.no_grad():
        for text in outputs:
            tokens = torch.tensor([text["prompt"] + text["output"]], device=device)
            logits = model(tokens)[0, len(text["prompt"]) - 1 : -1].log_softmax(-1).cpu()
            wanted = logits.gather(1, torch.tensor(text["output"])[:, None])[:, 0]
            errors.append((wanted - torch.tensor(text["log_probs"])).abs())
            missed.append(logits.amax(1) - wanted)
    del model
    gc.collect()
    torch.cuda.empty_cache()
    every = torch.cat(errors)
    return Agreement(float(every.max()), float(every.mean()), float(torch.cat(missed).max()))


# --- the table


def rows(measured: Sequence[dict[str, Any]], cases: Sequence[Case]) -> list[list[object]]:
    """Return a row per subject. `best TP` is the TPOT of the fastest engine without tracks, on as many ranks, over the
    subject's."""
    found: list[list[object]] = []
    for one in measured:
        row: list[object] = [one["title"], one["ranks"], one["sync_points"] if one["ranks"] > 1 else 0]
        row.append(f"{one['agreement']['largest']:.3f}" if one["agreement"] else "-")
        for number, case in enumerate(cases):
            runs = one["timings"][number] if one["timings"] else None
            if runs is None:
                row += ["-"] * 4
                continue
            tpot = statistics.median(run["tpot"] for run in runs)
            total = statistics.median(run["latency"] for run in runs)
            row.append(f"{1e3 * statistics.median(run['ttft'] for run in runs):.2f}")
            row.append(f"{1e3 * tpot:.3f}")
            row.append(f"{case.batch_size * case.output_length / total:.0f}")
            best = _best_tp(measured, one["ranks"], number)
            row.append(f"{best / tpot:.2f}" if best else "-")
        found.append(row)
    return found


def header(cases: Sequence[Case]) -> list[str]:
    return [
        *("engine", "ranks", "all-reduces", "log-prob error"),
        *(f"{what} b{case.batch_size}" for case in cases for what in ("TTFT ms", "TPOT ms", "tokens/s", "best TP")),
    ]


def _best_tp(measured: Sequence[dict[str, Any]], ranks: int, case: int) -> float | None:
    dense = [m["timings"][case] for m in measured if m["timings"] and (m["schedule"], m["ranks"]) == ("tp", ranks)]
    return min((statistics.median(run["tpot"] for run in runs) for runs in dense), default=None)


def measure(chosen: Sequence[Subject], arguments: argparse.Namespace, ranks: int) -> list[dict[str, Any]]:
    """Build all engines, then check them, then time them in rounds, so that drift of the machine affects all alike."""
    cases, folder = cases_of(arguments.cases), arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    built = {s: make_engines(s, arguments.engine, ranks, cases, folder) for s in chosen}
    timed: dict[Subject, list[list[dict[str, float]]]] = {s: [[] for _ in cases] for s in chosen if s.timed}
    agreed: dict[Subject, Agreement] = {}
    for subject in chosen:
        if not subject.timed:
            outputs = in_a_process("texts", built[subject], arguments.cases)
            agreed[subject] = agreement(make_checkpoint(subject, arguments.engine, ranks, folder), outputs)
            print(f"{subject.title}: {agreed[subject]}", flush=True)
    for number in range(arguments.rounds):
        for subject, runs in timed.items():
            print(f"round {number + 1}: {subject.title}", flush=True)
            for kept, new in zip(runs, in_a_process("timings", built[subject], arguments.cases), strict=True):
                kept += new
    return [
        asdict(subject)
        | {"ranks": ranks, "sync_points": (found := inspect(built[subject]))["sync_points"]}
        | {"schedule": read_engine(built[subject]).model.schedule, "recorded": found["recorded"]}
        | {"agreement": asdict(agreed[subject]) if subject in agreed else None, "timings": timed.get(subject)}
        for subject in chosen
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--engine", choices=("tensorrt_llm", "tensorrt", "embedded"), default="tensorrt_llm")
    parser.add_argument(
        "--ranks",
        type=int,
        choices=RANKS,
        nargs="+",
        help="GPUs to use [most of those here; tensorrt: each number that they are enough for]",
    )
    parser.add_argument("--model", help="PT preset, whose dense twin is also built [by memory: pt-6b or pt-150m]")
    parser.add_argument("--cases", default="1,512,128;32,512,128", help="BATCH,IN,OUT;… [%(default)s]")
    parser.add_argument("--rounds", type=int, default=2, help="passes over all engines [%(default)s]")
    parser.add_argument("--folder", type=Path, default=Path("build/gpu-check"), help="[%(default)s]")
    parser.add_argument("--do", nargs=2, help=argparse.SUPPRESS)  # `texts` or `timings`, and an engine directory
    return parser.parse_args(words)


def ranks_of(arguments: argparse.Namespace, machine: Machine) -> list[int]:
    """Return the numbers of ranks to run on. Raises UsageError for more than there are GPUs."""
    enough = [ranks for ranks in RANKS if ranks <= machine.gpus]
    wanted: list[int] = arguments.ranks or (enough if arguments.engine == "tensorrt" else enough[-1:])
    if max(wanted) > machine.gpus:
        raise UsageError(f"--ranks ({max(wanted)}) must not exceed the {machine.gpus} GPUs here")
    return wanted


def main(words: Sequence[str] | None = None) -> int:
    arguments = parse(words)
    cases = cases_of(arguments.cases)
    if arguments.do:
        what, folder = arguments.do
        print(json.dumps(texts(Path(folder)) if what == "texts" else timings(Path(folder), cases)))
        return 0
    machine = here(arguments.engine)
    numbers = ranks_of(arguments, machine)
    model = arguments.model or default_model(machine, min(numbers))
    chosen = {ranks: subjects(machine, arguments.engine, ranks, model, twin_of(model)) for ranks in numbers}
    measured = [one for ranks, some in chosen.items() for one in measure(some, arguments, ranks)]
    result = arguments.folder / "result.json"
    result.write_text(json.dumps({"machine": asdict(machine), "measured": measured}, indent=2) + "\n")
    print(f"\n{machine.gpus} x {machine.name}, {model} and {twin_of(model)} in bfloat16, medians of {WARM_UP} + {RUNS}")
    print(table(rows(measured, cases), header(cases)))
    wrong = [f"{m['title']} on {m['ranks']} ranks" for m in measured if m["agreement"] and not _holds(m)]
    print(
        f"{result} has every run. "
        + (f"These differ from the reference: {', '.join(wrong)}" if wrong else "All checks hold.")
    )
    return 1 if wrong else 0


def _holds(measured: dict[str, Any]) -> bool:
    return Agreement(**measured["agreement"]).holds(measured["quantize"])


if __name__ == "__main__":
    run_script(main)
