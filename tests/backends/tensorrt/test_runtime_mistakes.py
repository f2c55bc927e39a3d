"""Tests of the tests: what a mistake in the runtime does on the stand-in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.backends.tensorrt.conftest import Engines
from tests.backends.tensorrt.requests import workload
from tests.backends.tensorrt.running import running
from trtllm_pt.backends.tensorrt import slot_plan
from trtllm_pt.backends.tensorrt.slots import Slots
from trtllm_pt.errors import RunError
from trtllm_pt.runtime.llm import LLM

pytest.importorskip("tensorrt_rtx")


def results(llm: LLM) -> list[tuple[int, ...]]:
    requests = workload(4, llm.manifest.model.vocab_size)
    # Two prompts of several chunks, which are computed while the others decode.
    requests += [(tuple(range(start, start + 100)), replace(requests[0][1], max_tokens=9)) for start in (1, 0)]
    found = llm.generate([prompt for prompt, _ in requests], [sampling for _, sampling in requests])
    return [result.token_ids for result in found]


@pytest.fixture(scope="module")
def right(engines: Engines) -> list[tuple[int, ...]]:
    with running(engines("llama", 1)) as llm:
        return results(llm)


def a_chunk_of_another_slot(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    bind = engine._bind
    engine._bind = lambda context, layout, caches: bind(context, layout._replace(slot=0), caches)


def one_cache_for_two_layers(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    engine._caches["keys_1"] = engine._caches["keys_0"]
    engine.prepare(None)


def slots_that_do_not_take_part_write_at_their_start(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    of = slot_plan.SlotPlan.of

    def wrong(layout: Any, inputs: Any, *rest: Any) -> Any:
        tokens, positions, starts, *others = inputs
        if layout.profile == 0:
            starts = [0] * layout.slots
        return of(layout, (tokens, positions, starts, *others), *rest)

    monkeypatch.setattr(slot_plan.SlotPlan, "of", wrong)


def a_prefix_that_is_not_there(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    take = Slots.take

    def wrong(self: Slots, tokens: Any, reusable: int, *others: Any) -> tuple[int, int]:
        return take(self, tokens, reusable, *others)[0], min(reusable, 1)

    monkeypatch.setattr(Slots, "take", wrong)


def results_that_are_read_at_once(monkeypatch: pytest.MonkeyPatch, engine: Any) -> None:
    engine.gpu.wait = lambda: None


MISTAKES = (
    a_chunk_of_another_slot,
    one_cache_for_two_layers,
    slots_that_do_not_take_part_write_at_their_start,
    a_prefix_that_is_not_there,
    results_that_are_read_at_once,
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_shows(
    engines: Engines,
    right: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[[pytest.MonkeyPatch, Any], None],
) -> None:
    with running(engines("llama", 1)) as llm:
        mistake(monkeypatch, llm._runtime.session.engine)  # type: ignore[attr-defined]
        try:
            found = results(llm)
        except AssertionError:  # the stand-in has noticed it
            return
        assert found != right


def test_the_right_results_again(engines: Engines, right: list[tuple[int, ...]]) -> None:
    with running(engines("llama", 1)) as llm:
        assert results(llm) == right


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda engine: setattr(engine, "_logits", engine._logits.flatten()[1:]), "the address of logits"),
        (lambda engine: setattr(engine, "_inputs", engine._inputs[1:]), "the address of tokens"),
    ],
    ids=["logits", "inputs"],
)
def test_an_address_that_is_not_aligned_is_refused(
    engines: Engines, change: Callable[[Any], None], message: str
) -> None:
    with running(engines("llama", 1)) as llm:
        engine = llm._runtime.session.engine  # type: ignore[attr-defined]
        change(engine)
        with pytest.raises(RunError, match=f"TensorRT failed at {message}"):
            engine.prepare(None)
