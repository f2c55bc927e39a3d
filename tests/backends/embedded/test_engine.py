"""Built engines against the reference, the schedule and the numerics contract."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.backends.embedded import contract
from tests.backends.embedded.conftest import FEW_RANKS, Engines, mpirun
from tests.backends.embedded.kernels.plain import as_stored
from tests.configs import EVERYTHING, LLAMA, OTHER_SCHEDULES
from tests.engines import RANKS
from trtllm_pt.backends.embedded.engine import MODEL_FILE
from trtllm_pt.backends.embedded.graph import ops_in_order
from trtllm_pt.backends.embedded.step_plan import StepMessage, StepPlan
from trtllm_pt.backends.inspect import inspect
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.cli.app import main
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.cost import STEP_PLAN_BYTES
from trtllm_pt.model.schedule import Finish, Run, Start, schedule_of, sync_points
from trtllm_pt.network.reference import Linear

CONTRACT = Path(contract.__file__)


def logits_of(engine: Path, out: Path) -> np.ndarray:
    """Runs the contract on the engine's ranks; the logits of its prompts."""
    manifest = read_engine(engine)
    seen = json.loads(mpirun(manifest.ranks, CONTRACT, engine, out).splitlines()[-1])
    assert seen["sync_points_seen"] == sync_points(schedule_of(manifest.model))
    hops = [c for c in inspect(engine)["collectives"] if c["kind"] != "all_reduce"]
    assert seen["hops"] == pytest.approx(len(hops), abs=0.1)  # the last message, which ends the ranks, is one more
    return np.load(out)


def reference_logits(folder: Path, dtype: torch.dtype = torch.float64, integer_products: bool = False) -> np.ndarray:
    model = load_reference(folder, dtype)
    for module in model.modules():
        if integer_products and isinstance(module, Linear):
            module.register_forward_pre_hook(lambda _, x: as_stored(x[0]))
    with torch.no_grad():
        each = [model(torch.from_numpy(prompt)[None])[0] for prompt in contract.prompts(model.config.vocab_size)]
    return torch.cat(each).double().numpy()


@pytest.mark.parametrize(
    ("suffix", "all_ranks"),
    [
        pytest.param("", FEW_RANKS, id="bfloat16"),
        pytest.param("", RANKS, id="bfloat16 on many ranks", marks=pytest.mark.slow),
        pytest.param("-float32", RANKS, id="float32 on many ranks", marks=pytest.mark.slow),
        pytest.param("-quantised", FEW_RANKS, id="all in int4 or int8"),
        pytest.param("-quantised", RANKS, id="all in int4 or int8 on many ranks", marks=pytest.mark.slow),
        pytest.param("-W4A16", RANKS, id="int4 on many ranks", marks=pytest.mark.slow),
        pytest.param("-W8A16", RANKS, id="int8 on many ranks", marks=pytest.mark.slow),
        pytest.param("-integers", RANKS, id="products of integers on many ranks", marks=pytest.mark.slow),
    ],
)
def test_logits_are_the_same_on_any_number_of_ranks(
    engines: Engines, tmp_path: Path, suffix: str, all_ranks: tuple[int, ...]
) -> None:
    folders = engines(*(f"pretrained-{ranks}{suffix}" for ranks in all_ranks))
    first, *others = (logits_of(folder, tmp_path / f"{folder.name}.npy") for folder in folders)
    for ranks, other in zip(all_ranks[1:], others, strict=True):
        assert other.tobytes() == first.tobytes(), f"{ranks} ranks differ by {np.abs(other - first).max()}"
    checkpoint = folders[0].parent / f"checkpoint-{folders[0].name}"
    want = reference_logits(checkpoint, integer_products=suffix == "-integers")
    errors = np.abs(first - want).max(-1)  # of each token
    # bfloat16 rounds to 8 bits: 0.27 was seen at most, on logits of up to 14.
    assert errors.max() < (1e-4 if suffix == "-float32" else 0.5), errors.max()
    # In float32, a token differs by more only if the last bit of an activation has decided its integer somewhere in the
    # token's context. A quarter of the tokens were free of that.
    assert suffix != "-integers" or np.quantile(errors, 0.1) < 1e-4


@pytest.mark.parametrize(
    "names", [("everything-1", "everything-2"), ("llama-2",), pytest.param(("llama-1",), marks=pytest.mark.slow)]
)
def test_every_variation_of_the_config(engines: Engines, tmp_path: Path, names: tuple[str, ...]) -> None:
    folders = engines(*names)
    first, *others = (logits_of(folder, tmp_path / f"{folder.name}.npy") for folder in folders)
    want = reference_logits(folders[0].parent / f"checkpoint-{names[0]}")
    assert np.abs(first - want).max() < 1e-4
    assert all(other.tobytes() == first.tobytes() for other in others)


def test_every_other_schedule(engines: Engines, tmp_path: Path) -> None:
    for folder in engines(*(f"{name}-2" for name in OTHER_SCHEDULES)):
        want = reference_logits(folder.parent / f"checkpoint-{folder.name}")
        assert np.abs(logits_of(folder, tmp_path / "logits.npy") - want).max() < 1e-4, folder.name


ORDERED = ["pretrained-2", "everything-2", "llama-2", "spd-2", "desync-2", "parallel-2", "ladder-2", "dtp-2"]


@pytest.mark.parametrize("name", ORDERED)
def test_collectives_stand_where_the_program_has_them(engines: Engines, name: str) -> None:
    [folder] = engines(name)
    config = read_engine(folder).model
    assert [op for op in map(event, ops_in_order(folder / MODEL_FILE)) if op] == program(config)


def event(op: str) -> str | None:
    sub_layers = {"attention": "attention", "linear_swiglu": "ffn", "experts": "ffn"}
    return sub_layers.get(op, op if op.endswith("all_reduce") else None)


def program(config: ModelConfig) -> list[str]:
    steps = schedule_of(config)
    names: dict[tuple[type, bool], str | None] = {
        (Start, True): "all_reduce",
        (Finish, True): None,
        (Start, False): "start_all_reduce",
        (Finish, False): "finish_all_reduce",
    }
    at_once = {a.key for a, b in pairwise(steps) if isinstance(a, Start) and b == Finish(a.key)}
    found = [s.place if isinstance(s, Run) else names[type(s), s.key in at_once] for s in steps]
    return [name for name in found if name]


def test_weights_are_mapped_and_not_copied(engines: Engines) -> None:
    [folder] = engines("pretrained-1")
    script = f"""
import sys
from pathlib import Path
from trtllm_pt.backends.embedded.session import open_session
session = open_session(Path({str(folder)!r}))
maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
spans = [[int(x, 16) for x in m[0].split("-")] for m in maps if m[-1].endswith(".safetensors")]
weights = session.engine._weights.values()
assert all(any(a <= w.data_ptr() < b for a, b in spans) for w in weights), "a weight is not in a file's map"
assert "torch._inductor" not in sys.modules, "running needs the compiler's package"
"""
    mpirun(1, "-c", script)


@pytest.mark.parametrize(("name", "gemm"), [("pretrained-1-integers", "int8"), ("pretrained-1-W8A16", None)])
def test_inspect_says_whether_layers_multiply_integers(
    engines: Engines, name: str, gemm: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    [folder] = engines(name)
    assert inspect(folder)["gemm"] == gemm
    with pytest.raises(SystemExit):
        main(["inspect", str(folder)])
    assert ("products int8" in capsys.readouterr().out) == (gemm == "int8")


def test_what_inspect_says_of_a_step_is_what_is_sent() -> None:
    message = StepMessage(1, 1, 16)
    message.write(StepPlan(tokens=[0], starts=[0], offsets=[0, 1], last=[0], pages=[[0]]))
    assert message.numbers.nbytes == STEP_PLAN_BYTES


def test_configs_cover_every_field() -> None:
    """A field that no engine test sets would be untested here."""
    plain = ModelConfig(
        num_layers=1, hidden_size=1, num_heads=1, num_kv_heads=1, head_size=2, intermediate_size=1, vocab_size=1
    )
    fields = plain.to_json()
    untouched = [k for k in fields if EVERYTHING.to_json()[k] == fields[k] and LLAMA.to_json()[k] == fields[k]]
    others = {"sync_every", "dropped_layers", "delay"}  # of OTHER_SCHEDULES
    assert set(untouched) - others <= {"model_type", "architectures", "rope_theta", "norm_eps"}
