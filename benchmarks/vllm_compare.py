"""Compare dense tensor parallelism with Parallel Track inside vLLM's own engine, with equal numbers of parameters.

The columns are those of Tables 8 to 10 of arXiv:2602.07306: throughput, TTFT and TPOT. The contenders take turns, and a
ratio compares samples of the same round with the first contender: `tp`, or with `--schedules llama …` vLLM's own Llama
of the same sizes. `--without-all-reduces` leaves the ranks' sums out of all contenders, which shows what the rest of
each network costs. Weights are random.

    build/vllm-cpu/bin/python benchmarks/vllm_compare.py --model pt-190m --ranks 2
    build/vllm-cpu/bin/python benchmarks/vllm_compare.py --link-us 1000      # over TCP, as root: 1 ms one way
    build/vllm-cpu/bin/python benchmarks/vllm_compare.py --schedules llama pt-d8 --without-all-reduces
    python benchmarks/vllm_compare.py --ranks 8 --model pt-6b --lengths 1024/128 4096/128    # on 8 GPUs
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.side import last_words
from common.vllm_rank import Job

from trtllm_pt.bench.contenders import BASELINE, schedules_of
from trtllm_pt.bench.facts import machine_facts
from trtllm_pt.bench.netlab.links import DEVICE, Link, Links, check_namespaces
from trtllm_pt.bench.results import as_json_text, median, ratios
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.files.atomic import write_text
from trtllm_pt.job.process import end
from trtllm_pt.job.shared_memory import remove_unmapped
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.presets import preset
from trtllm_pt.model.schedule import schedule_of, sync_points

SCHEDULES = ["pt-d1", "pt-d2", "pt-d4", "pt-d8"]
LLAMA = "llama"  # vLLM's own network with the sizes of `tp`
LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
COLUMNS = {"throughput": 1.0, "ttft": 1e3, "tpot": 1e3}  # and their factors: tokens/s, ms and ms
_PATIENCE = 20.0  # seconds that the ranks have to end


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pt-190m", help="a preset, or a config.json [%(default)s]")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES, metavar="NAME", help="beside tp [%(default)s]")
    parser.add_argument("--lengths", nargs="+", default=["128/32"], metavar="IN/OUT", help="tokens [%(default)s]")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each contender and case [%(default)s]")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--link-us", type=float, metavar="US", help="a TCP link of this delay one way; needs root")
    parser.add_argument(
        "--without-all-reduces", action="store_true", help="let each rank keep its own part of every sum"
    )
    parser.add_argument(
        "--processor-time", action="store_true", help="count processor time, for one rank on a busy machine"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the samples")
    return parser.parse_args()


def contenders(args: argparse.Namespace) -> dict[str, ModelConfig]:
    path = Path(args.model)
    config = ModelConfig.from_file(path) if path.suffix == ".json" else preset(args.model)
    found = schedules_of(config, args.ranks, [name for name in args.schedules if name != LLAMA])
    return {LLAMA: found[BASELINE], **found} if LLAMA in args.schedules else found


def config_json(name: str, config: ModelConfig) -> dict[str, Any]:
    """Return the config.json of a contender."""
    if name != LLAMA:
        return config.to_json()
    if config != ModelConfig(schedule=BASELINE, **{ours: getattr(config, ours) for ours in LLAMA_KEYS}):
        raise UsageError(f"--schedules ({LLAMA!r}): the model has something that a Llama of vLLM has not")
    sizes = {theirs: getattr(config, ours) for ours, theirs in LLAMA_KEYS.items()}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes}


def all_reduces(name: str, config: ModelConfig, args: argparse.Namespace) -> int:
    """Return the all-reduces per forward pass. vLLM's Llama has one more, for its divided embedding."""
    return 0 if args.without_all_reduces else sync_points(schedule_of(config)) + (name == LLAMA)


def cases(args: argparse.Namespace) -> list[list[int]]:
    found = []
    for text in args.lengths:
        before, _, after = text.partition("/")
        if not (before.isdigit() and after.isdigit() and int(before) and int(after) > 1):
            raise UsageError(f"--lengths ({text!r}) must be IN/OUT, such as 1024/128, with at least 2 tokens out")
        found += [[batch, int(before), int(after)] for batch in args.batch_sizes]
    return found


def on_cpu() -> bool:
    """Whether the vLLM of this Python is built for CPUs."""
    command = [sys.executable, "-c", "import torch; print(torch.version.cuda or torch.version.hip)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "None"


def measure(args: argparse.Namespace, models: dict[str, ModelConfig]) -> Iterator[dict[str, Any]]:
    """The samples of all contenders. Raises RunError, with the last line of a rank's log, if one fails."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = {}
        for name, config in models.items():
            (scratch / name).mkdir()
            (scratch / name / "config.json").write_text(as_json_text(config_json(name, config)))
            folders[name] = str(scratch / name)
        lab = None
        if args.link_us is not None:
            check_namespaces(args.ranks)
            lab = stack.enter_context(Links(args.ranks, Link(args.link_us)))
        addresses = [lab.address(rank) if lab else "127.0.0.1" for rank in range(args.ranks)]
        interface = DEVICE if lab else None
        job = Job(
            folders,
            args.ranks,
            cases(args),
            args.rounds,
            args.dtype,
            addresses,
            _port(),
            interface,
            on_cpu(),
            not args.without_all_reduces,
            args.processor_time,
        )
        (scratch / "job.json").write_text(as_json_text(asdict(job)))
        command = [sys.executable, "-m", "common.vllm_rank"]
        commands = [[*command, str(rank), str(scratch / "job.json")] for rank in range(args.ranks)]
        if lab:
            commands = [lab.in_rank(rank, *each) for rank, each in enumerate(commands)]
        yield from _samples(commands, scratch)


def _port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def _samples(commands: Sequence[Sequence[str]], scratch: Path) -> Iterator[dict[str, Any]]:
    remove_unmapped("-tp:*-cpushm*")  # vLLM would not start beside them
    logs = [scratch / f"{rank}.log" for rank in range(len(commands))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with contextlib.ExitStack() as stack:
        jobs = []
        for command, log in zip(commands, logs, strict=True):
            printed = stack.enter_context(log.open("w"))
            jobs.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=printed, text=True, env=environment, start_new_session=True
                )
            )
            stack.callback(end, jobs[-1], _PATIENCE)
        assert jobs[0].stdout is not None
        for line in jobs[0].stdout:
            if line.startswith("{"):
                yield json.loads(line)
        if jobs[0].wait():
            raise RunError(f"a rank failed: {last_words(logs[0])}")


def table(all_reduces: dict[str, int], samples: list[dict[str, Any]]) -> str:
    """A row per case and contender, of which the first is the baseline.

    A ratio is the median over the rounds, with the smallest and the largest.
    """
    baseline = next(iter(all_reduces))
    head = ["batch, in/out", "schedule", "all-reduces", "tokens/s", "ratio", "TTFT (ms)", "ratio", "TPOT (ms)", "ratio"]
    lines = [head, ["---"] * len(head)]
    for case in dict.fromkeys(tuple(each["case"]) for each in samples):
        taken = {
            name: [each for each in samples if each["name"] == name and tuple(each["case"]) == case]
            for name in all_reduces
        }
        rounds = min(map(len, taken.values()))
        if not rounds:
            continue
        for name, count in all_reduces.items():
            row = [f"{case[0]}, {case[1]}/{case[2]}", name, str(count)]
            for column, factor in COLUMNS.items():
                own, other = ([each[column] for each in taken[who][:rounds]] for who in (name, baseline))
                ratio = ratios(own, other)
                row.append(f"{factor * median(own):.4g}")
                row.append(f"{ratio['median']:.2f} ({ratio['minimum']:.2f}–{ratio['maximum']:.2f})")
            lines.append(row)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Return the exit status: 1 if vLLM failed, 2 after a usage error, 130 after an interruption."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` sends SIGTERM, which interrupts, too
    args, status, samples = parsed(), 0, []
    try:
        if args.processor_time and args.ranks > 1:
            raise UsageError(f"--processor-time needs --ranks 1 (not {args.ranks}): ranks spin while they wait")
        models = contenders(args)
        for sample in measure(args, models):
            samples.append(sample)
            if args.json:
                facts = {"machine": machine_facts(), "link_us": args.link_us, "samples": samples}
                write_text(args.json, as_json_text(facts))
    except (RunError, UsageError) as error:
        print(f"Error: {error}", file=sys.stderr)
        status = error.exit_status
    except KeyboardInterrupt:
        status = 130
    if samples:
        print(table({name: all_reduces(name, config, args) for name, config in models.items()}, samples))
    return status


if __name__ == "__main__":
    sys.exit(main())
