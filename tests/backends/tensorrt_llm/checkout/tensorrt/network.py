"""The network that TensorRT-LLM's code adds layers to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.backends.tensorrt_llm.checkout.tensorrt import plugins
from tests.backends.tensorrt_llm.checkout.tensorrt.dimensions import Size, Symbolic
from tests.backends.tensorrt_llm.checkout.tensorrt.enums import (
    DataType,
    GatherMode,
    LayerType,
    NetworkDefinitionCreationFlag,
)
from tests.backends.tensorrt_llm.checkout.tensorrt.graph import ILayer, Inferred, ITensor, NetworkError, Weights
from tests.backends.tensorrt_llm.checkout.tensorrt.shapes import RULES

Tensors = Sequence[ITensor]


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags, self.name = flags, ""
        self.inputs: list[ITensor] = []
        self.outputs: list[ITensor] = []
        self.layers: list[ILayer] = []
        self.weight_names: dict[str, Weights] = {}

    def infer(self, layer: ILayer) -> list[Inferred]:
        if layer.type not in RULES:
            raise NetworkError(f"{layer.name}: nothing is known of the outputs of such a layer")
        return RULES[layer.type](layer)

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags >> int(flag) & 1)

    @property
    def strongly_typed(self) -> bool:
        return self.get_flag(NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_layer(self, index: int) -> ILayer:
        return self.layers[index]

    def get_input(self, index: int) -> ITensor:
        return self.inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self.outputs[index]

    def add_input(self, name: str, dtype: DataType, shape: Sequence[int]) -> ITensor:
        if any(tensor.name == name for tensor in self.inputs):
            raise NetworkError(f"there are two inputs {name}")
        dims: list[Size] = [
            int(size) if int(size) >= 0 else Symbolic.named(f"{name}.{axis}") for axis, size in enumerate(shape)
        ]
        self.inputs.append(ITensor(name, dims=dims, dtype=dtype))
        return self.inputs[-1]

    def mark_output(self, tensor: ITensor) -> None:
        tensor.is_network_output = True
        self.outputs.append(tensor)

    def unmark_output(self, tensor: ITensor) -> None:
        tensor.is_network_output = False
        self.outputs = [other for other in self.outputs if other is not tensor]

    def set_weights_name(self, weights: Weights, name: str) -> bool:
        self.weight_names[name] = weights
        return True

    def mark_weights_refittable(self, name: str) -> bool:
        return True

    # Attributes get TensorRT's names, but for `sizes`: a layer's own `shape`.

    def add_constant(self, shape: Sequence[int], weights: Any) -> ILayer:
        held = weights if isinstance(weights, Weights) else Weights(weights)
        return ILayer(self, LayerType.CONSTANT, [], sizes=tuple(shape), weights=held)

    def add_identity(self, input: ITensor) -> ILayer:
        return ILayer(self, LayerType.IDENTITY, [input])

    def add_cast(self, input: ITensor, to_type: DataType) -> ILayer:
        return ILayer(self, LayerType.CAST, [input], to_type=to_type)

    def add_shape(self, input: ITensor) -> ILayer:
        return ILayer(self, LayerType.SHAPE, [input])

    def add_shuffle(self, input: ITensor) -> ILayer:
        fields = {"first_transpose": None, "reshape_dims": None, "second_transpose": None, "zero_is_placeholder": True}
        return ILayer(self, LayerType.SHUFFLE, [input], **fields)

    def add_elementwise(self, input1: ITensor, input2: ITensor, op: Any) -> ILayer:
        return ILayer(self, LayerType.ELEMENTWISE, [input1, input2], op=op)

    def add_unary(self, input: ITensor, op: Any) -> ILayer:
        return ILayer(self, LayerType.UNARY, [input], op=op)

    def add_activation(self, input: ITensor, type: Any) -> ILayer:
        return ILayer(self, LayerType.ACTIVATION, [input], function=type, alpha=0.0, beta=0.0)

    def add_softmax(self, input: ITensor) -> ILayer:
        return ILayer(self, LayerType.SOFTMAX, [input], axes=1)

    def add_normalization(self, input: ITensor, scale: ITensor, bias: ITensor, axesMask: int) -> ILayer:
        return ILayer(
            self, LayerType.NORMALIZATION, [input, scale, bias], axes=int(axesMask), epsilon=1e-5, num_groups=1
        )

    def add_reduce(self, input: ITensor, op: Any, axes: int, keep_dims: bool) -> ILayer:
        return ILayer(self, LayerType.REDUCE, [input], op=op, axes=int(axes), keep_dims=keep_dims)

    def add_concatenation(self, inputs: Tensors) -> ILayer:
        return ILayer(self, LayerType.CONCATENATION, inputs, axis=0)

    def add_gather(self, input: ITensor, indices: ITensor, axis: int) -> ILayer:
        fields = {"axis": axis, "mode": GatherMode.DEFAULT, "num_elementwise_dims": 0}
        return ILayer(self, LayerType.GATHER, [input, indices], **fields)

    def add_gather_v2(self, input: ITensor, indices: ITensor, mode: Any) -> ILayer:
        return ILayer(self, LayerType.GATHER, [input, indices], axis=0, mode=mode, num_elementwise_dims=0)

    def add_slice(self, input: ITensor, start: Sequence[int], shape: Sequence[int], stride: Sequence[int]) -> ILayer:
        fields = {"start": tuple(start), "sizes": tuple(shape), "stride": tuple(stride), "mode": None}
        return ILayer(self, LayerType.SLICE, [input], **fields)

    def add_select(self, condition: ITensor, then_input: ITensor, else_input: ITensor) -> ILayer:
        return ILayer(self, LayerType.SELECT, [condition, then_input, else_input])

    def add_matrix_multiply(self, input0: ITensor, op0: Any, input1: ITensor, op1: Any) -> ILayer:
        return ILayer(self, LayerType.MATRIX_MULTIPLY, [input0, input1], op0=op0, op1=op1)

    def add_topk(self, input: ITensor, op: Any, k: int, axes: int, indices_type: Any = None) -> ILayer:
        return ILayer(self, LayerType.TOPK, [input], outputs=2, op=op, k=k, axes=int(axes))

    def add_fill(self, shape: Sequence[int], op: Any, output_type: Any = None) -> ILayer:
        fields = {"sizes": tuple(shape), "op": op, "to_type": output_type, "alpha": 0, "beta": 1}
        return ILayer(self, LayerType.FILL, [], **fields)

    def add_non_zero(self, input: ITensor, indices_type: Any = None) -> ILayer:
        return ILayer(self, LayerType.NON_ZERO, [input])

    def add_scatter(self, data: ITensor, indices: ITensor, updates: ITensor, mode: Any) -> ILayer:
        return ILayer(self, LayerType.SCATTER, [data, indices, updates], mode=mode, axis=0)

    def add_quantize(self, input: ITensor, scale: ITensor, output_type: Any = None) -> ILayer:
        return ILayer(self, LayerType.QUANTIZE, [input, scale], to_type=output_type or DataType.INT8, axis=-1)

    def add_dequantize(self, input: ITensor, scale: ITensor, output_type: Any = None) -> ILayer:
        return ILayer(self, LayerType.DEQUANTIZE, [input, scale], to_type=output_type or DataType.FLOAT, axis=-1)

    def add_plugin_v2(self, inputs: Tensors, plugin: plugins.Plugin) -> ILayer:
        return ILayer(self, LayerType.PLUGIN_V2, inputs, outputs=plugin.num_outputs, plugin=plugin)
