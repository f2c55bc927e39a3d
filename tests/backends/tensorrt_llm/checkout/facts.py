"""What a recorded network is: its inputs, collectives, attention calls, and how they hang together."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.backends.tensorrt_llm.checkout.execute.attention_inputs import FP8_KV_CACHE
from tests.backends.tensorrt_llm.checkout.execute.program import Program, plugin_kind
from tests.backends.tensorrt_llm.checkout.tensorrt.enums import LayerType
from tests.backends.tensorrt_llm.checkout.tensorrt.graph import ILayer, ITensor

SubLayer = tuple[int, str]  # the number of a layer, and "attention" or "ffn"
_WEIGHT = re.compile(r"transformer\.layers\.(\d+)\.(attention|mlp)\.")
_PLACES = {"attention": "attention", "mlp": "ffn"}
_TOKENS = ("num_tokens", "position_ids_num_tokens_range")  # two names that TensorRT-LLM has for one size
_POSITIONS = {0: "none", 1: "rope_gptj", 2: "rope_gpt_neox"}


@dataclass(frozen=True)
class Port:
    """A network's input or output."""

    shape: tuple[str, ...]
    dtype: str


@dataclass(frozen=True)
class Collective:
    kind: str
    group: tuple[int, ...]
    strategy: int | None
    operand: Port
    # Sub-layers whose outputs are in the operand, not counting what came through an earlier all-reduce.
    shares: frozenset[SubLayer]
    after: frozenset[int]  # the all-reduces, by number, on which the operand depends


@dataclass(frozen=True)
class AttentionCall:
    layer: int
    heads: int
    kv_heads: int
    head_size: int
    position: str
    window_input: str  # the network input that holds the layers' windows
    has_fp8_cache: bool


@dataclass(frozen=True)
class Facts:
    """Of one rank's network."""

    inputs: dict[str, Port]
    outputs: dict[str, Port]
    collectives: list[Collective]  # in the order in which they run
    attention: list[AttentionCall]
    reads: dict[SubLayer, frozenset[int]]  # the all-reduces, by number, on which a sub-layer's input depends
    weights: dict[str, Port]
    unresolved: list[str]  # layers with an output of which a size was not followed


def facts_of(program: Program) -> Facts:
    flow = _Flow(program)
    return Facts(
        inputs={tensor.name: _port(tensor) for tensor in program.network.inputs},
        outputs={tensor.name: _port(tensor) for tensor in program.network.outputs},
        collectives=flow.collectives,
        attention=[_attention(layer) for layer in program.plugins("GPTAttention")],
        reads=flow.reads,
        weights={name: _port(layer.get_output(0)) for layer, name in program.weight_names.items()},
        unresolved=[layer.name for layer in program.layers if any("Unnamed" in repr(t.dims) for t in layer.outputs)],
    )


def _port(tensor: ITensor) -> Port:
    sizes = (repr(size) for size in tensor.dims)
    return Port(tuple("num_tokens" if size in _TOKENS else size for size in sizes), tensor.dtype.name)


def _attention(layer: ILayer) -> AttentionCall:
    scalar = layer.plugin.scalar
    return AttentionCall(
        layer=scalar("layer_idx"),
        heads=scalar("num_heads"),
        kv_heads=scalar("num_kv_heads"),
        head_size=scalar("head_size"),
        position=_POSITIONS[scalar("position_embedding_type")],
        window_input=layer.inputs[3].name,
        has_fp8_cache=bool(scalar("kv_cache_quant_mode") & FP8_KV_CACHE),
    )


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from."""

    shares: frozenset[SubLayer] = frozenset()  # sub-layers, back to the last all-reduces
    reduced: frozenset[int] = frozenset()  # all-reduces, back to the inputs
    is_constant: bool = True

    def __or__(self, other: _Origin) -> _Origin:
        is_constant = self.is_constant and other.is_constant
        return _Origin(self.shares | other.shares, self.reduced | other.reduced, is_constant)


class _Flow:
    """Follows every tensor from the sub-layers' weights, which have names, to the outputs."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.collectives: list[Collective] = []
        self.reads: dict[SubLayer, frozenset[int]] = {}
        self._origins = {tensor: _Origin(is_constant=False) for tensor in program.network.inputs}
        self._reductions = 0
        for layer in program.layers:
            origin = self._origin(layer)
            self._origins.update(dict.fromkeys(layer.outputs, origin))

    def _origin(self, layer: ILayer) -> _Origin:
        if layer.type == LayerType.CONSTANT:
            found = _WEIGHT.match(self.program.weight_names.get(layer, ""))
            return _Origin(frozenset({(int(found[1]), _PLACES[found[2]])}) if found else frozenset())
        inputs = [self._origins[tensor] for tensor in layer.inputs if tensor is not None]
        origin = _Origin()
        for each in inputs:
            origin |= each
        self._note_reads(inputs)
        if plugin_kind(layer) not in ("AllReduce", "AllGather"):
            return origin
        self.collectives.append(self._collective(layer, inputs[0]))
        if plugin_kind(layer) == "AllGather":
            return origin
        self._reductions += 1
        return _Origin(frozenset(), origin.reduced | {self._reductions - 1}, is_constant=False)

    def _note_reads(self, inputs: list[_Origin]) -> None:
        """Where a sub-layer's weight meets a value that is not its own yet, there it reads."""
        own = frozenset().union(*(each.shares for each in inputs if each.is_constant))
        for sub_layer in own:
            for value in inputs:
                if not value.is_constant and sub_layer not in value.shares:
                    self.reads[sub_layer] = self.reads.get(sub_layer, frozenset()) | value.reduced

    def _collective(self, layer: ILayer, operand: _Origin) -> Collective:
        return Collective(
            kind=layer.plugin.plugin_type,
            group=layer.plugin.numbers("group"),
            strategy=layer.plugin.scalar("strategy"),
            operand=_port(layer.inputs[0]),
            shares=operand.shares,
            after=operand.reduced,
        )
