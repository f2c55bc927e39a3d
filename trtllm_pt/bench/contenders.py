"""The engines of a comparison: one model under several schedules with equal parameters, or existing engines."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trtllm_pt.backends.manifest import BuildOptions
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.bench.facts import Facts
from trtllm_pt.bench.jobs import sharing_backend
from trtllm_pt.bench.results import bar
from trtllm_pt.bench.static_batch import Case
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.planner.plan import short_name
from trtllm_pt.planner.variants import variants

BASELINE = "tp"
_TRACKS = 8


@dataclass(frozen=True, slots=True)
class Contender:
    """An engine and its name in the tables."""

    name: str
    facts: Facts


def schedules_of(config: ModelConfig, ranks: int, names: Sequence[str] | None) -> dict[str, ModelConfig]:
    """Return `config` and its variants with equally many parameters: `tp` first, then `pt-d4`, `desync-2`, `spd-8`, ….

    Without `names`, return all that can be divided over `ranks`. Raises UsageError for an unknown name, or if the
    model has no dense variant to compare with.
    """
    found = {}
    for variant in variants(config, config.tracks if config.tracks > 1 else _TRACKS):
        with contextlib.suppress(UsageError):
            rank_layout(variant, ranks)
            found[slug(variant)] = variant
    if BASELINE not in found:
        raise UsageError(f"ranks ({ranks}) cannot divide a dense model of this size, which would be the baseline")
    for name in names or ():
        if name not in found:
            raise UsageError(f"--schedules ({name!r}): on {ranks} ranks this model has {', '.join(sorted(found))}")
    chosen = sorted(names or found, key=_natural)
    return {name: found[name] for name in dict.fromkeys([BASELINE, *chosen])}


def slug(config: ModelConfig) -> str:
    """Return `pt-d4` for `pt D=4`, or `desync-2` for `desync 2`: a name that needs no quotes in a shell."""
    return short_name(config).lower().replace("=", "").replace(" ", "-")


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def options_for(config: ModelConfig, cases: Sequence[Case]) -> BuildOptions:
    """Return build options for the largest case. Raises UsageError if the model has too few positions."""
    length = max(case.input_length + case.output_length for case in cases)
    if length > config.max_position_embeddings:
        raise UsageError(
            f"input_output_len: {length} tokens together exceed the model's max_position_embeddings "
            f"({config.max_position_embeddings})"
        )
    batch = max(case.batch_size for case in cases)
    return BuildOptions(max_batch_size=batch, max_seq_len=length, max_num_tokens=max(2048, batch))


def build_all(
    configs: dict[str, ModelConfig], ranks: int, dtype: str, options: BuildOptions, folder: Path
) -> dict[str, Path]:
    """Build an engine with random weights for every config.

    Engines stay in `folder`, and are used again as long as this version of the package can run them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / _file_name(name, config, ranks, dtype, options) for name, config in configs.items()}
    missing = [name for name, path in paths.items() if not _usable(path)]
    with bar(len(missing), "building engines", "engine") as progress:
        for name in missing:
            _build(configs[name], ranks, dtype, options, paths[name])
            progress.update()
    return paths


def _file_name(name: str, config: ModelConfig, ranks: int, dtype: str, options: BuildOptions) -> str:
    parts = json.dumps([config.to_json(), dtype, repr(options)])
    return f"{name}-{ranks}-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"


def _usable(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        manifest = read_engine(path)
        manifest.backend.check_versions(path, manifest)
    except UsageError:  # an earlier version of the package built it
        shutil.rmtree(path)
        return False
    return True


def _build(config: ModelConfig, ranks: int, dtype: str, options: BuildOptions, path: Path) -> None:
    from trtllm_pt.backends.build import build
    from trtllm_pt.checkpoint.init import init

    checkpoint = path.with_name(f"{path.name}.checkpoint")
    shutil.rmtree(checkpoint, ignore_errors=True)
    init(config, checkpoint, ranks=ranks, dtype=dtype, seed=0)
    build(checkpoint, path, sharing_backend().name, options, progress=False)
    shutil.rmtree(checkpoint)


def named(engines: Sequence[str]) -> list[Contender]:
    """Read NAME=ENGINES arguments.

    Raises UsageError if a name occurs twice, or if the engines have different numbers of ranks.
    """
    found: dict[str, Contender] = {}
    for text in engines:
        name, separator, folder = text.partition("=")
        if not separator:
            name, folder = Path(text).name, text
        if name in found:
            raise UsageError(f"two engines have the name {name!r}: give them different names, NAME=ENGINES")
        found[name] = Contender(name, Facts.of(Path(folder)))
    _check_ranks(list(found.values()))
    return list(found.values())


def _check_ranks(contenders: Sequence[Contender]) -> None:
    ranks = {each.name: each.facts.manifest.ranks for each in contenders}
    if len(set(ranks.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in ranks.items())
        raise UsageError(f"engines being compared must have the same number of ranks; these have: {listed}")


def same_size(contenders: Sequence[Contender]) -> Iterator[str]:
    """Yield a warning for every contender whose parameters differ from the baseline's by more than 2 %."""
    wanted = contenders[0].facts.inspected["parameters"]
    for each in contenders[1:]:
        if abs((own := each.facts.inspected["parameters"]) - wanted) > wanted / 50:
            yield f"{each.name} has {own / wanted:.3g} times the parameters of {contenders[0].name}"
