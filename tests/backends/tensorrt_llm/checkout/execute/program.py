"""A recorded network as a program: its layers in an order in which they can run, its weights copied out."""

from __future__ import annotations

import heapq
import math

import torch
from torch import Tensor

from tests.backends.tensorrt_llm.checkout.execute.values import STORED, ExecutionError, held
from tests.backends.tensorrt_llm.checkout.tensorrt.enums import LayerType
from tests.backends.tensorrt_llm.checkout.tensorrt.graph import ILayer
from tests.backends.tensorrt_llm.checkout.tensorrt.network import INetworkDefinition


class Program:
    """One rank's network. Made while it is built: TensorRT-LLM lets go of the weights afterwards."""

    def __init__(self, network: INetworkDefinition) -> None:
        self.network = network
        self.layers = _in_order(_live(network), network)
        self.constants = {layer: _constant(layer) for layer in self.layers if layer.type == LayerType.CONSTANT}
        named = {id(weights): name for name, weights in network.weight_names.items()}
        self.weight_names = {layer: named[id(layer.weights)] for layer in self.constants if id(layer.weights) in named}

    def plugins(self, kind: str) -> list[ILayer]:
        return [layer for layer in self.layers if plugin_kind(layer) == kind]


def plugin_kind(layer: ILayer) -> str | None:
    return layer.plugin.plugin_type if layer.type == LayerType.PLUGIN_V2 else None


def producers(layer: ILayer) -> list[ILayer]:
    return [tensor.producer for tensor in layer.inputs if tensor is not None and tensor.producer is not None]


def _live(network: INetworkDefinition) -> set[ILayer]:
    """Layers on which an output depends; graph rewriting leaves the others in the network."""
    live: set[ILayer] = set()
    waiting = [tensor.producer for tensor in network.outputs]
    while waiting:
        layer = waiting.pop()
        if layer is not None and layer not in live:
            live.add(layer)
            waiting += producers(layer)
    return live


def _in_order(live: set[ILayer], network: INetworkDefinition) -> list[ILayer]:
    """Each layer after those it reads; otherwise as they were added."""
    number = {layer: index for index, layer in enumerate(network.layers)}
    missing = {layer: len(set(producers(layer))) for layer in live}
    users: dict[ILayer, list[ILayer]] = {layer: [] for layer in live}
    for layer in live:
        for producer in set(producers(layer)):
            users[producer].append(layer)
    ready = [number[layer] for layer, count in missing.items() if not count]
    heapq.heapify(ready)
    ordered = []
    while ready:
        ordered.append(network.layers[heapq.heappop(ready)])
        for user in users[ordered[-1]]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, number[user])
    if len(ordered) != len(live):
        raise ExecutionError("the network has a circle")
    return ordered


def _constant(layer: ILayer) -> Tensor:
    dtype = layer.get_output(0).dtype
    stored = STORED[dtype]
    raw = layer.weights.raw(math.prod(layer.sizes) * stored.itemsize)
    values = torch.frombuffer(bytearray(raw), dtype=stored) if raw else torch.empty(0, dtype=stored)
    return held(values.reshape(layer.sizes), dtype)
