"""The builder and the small things around it. Building an engine only hands the network to who listens."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.backends.tensorrt_llm.checkout.tensorrt.graph import NetworkError
from tests.backends.tensorrt_llm.checkout.tensorrt.network import INetworkDefinition


class ILogger:
    def __init__(self, *_: Any) -> None:
        pass

    def log(self, severity: Any, msg: str) -> None:
        pass


class Logger(ILogger):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self, min_severity: int = 2) -> None:
        self.min_severity = min_severity


class IHostMemory(bytes):
    def __enter__(self) -> IHostMemory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def nbytes(self) -> int:
        return len(self)


class ITimingCache:
    def serialize(self) -> IHostMemory:
        return IHostMemory(b"nothing was timed")


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))

    set_shape_input = set_shape


class IBuilderConfig:
    def __init__(self) -> None:
        self.flags: set[Any] = set()
        self.profiles: list[IOptimizationProfile] = []
        self.timing_cache: ITimingCache | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self.flags

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache()

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool = False) -> None:
        self.timing_cache = cache

    def get_timing_cache(self) -> ITimingCache | None:
        return self.timing_cache

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)


# Called with every network that is built, while its weights are still in memory.
LISTENERS: list[Callable[[INetworkDefinition], None]] = []


class Builder:
    def __init__(self, logger: Any = None) -> None:
        self.logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(int(flags))

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory:
        for profile in config.profiles:
            for tensor in network.inputs:
                if -1 in tensor.shape and tensor.name not in profile.shapes:
                    raise NetworkError(f"input {tensor.name} {tensor.dims} has no range in a profile")
        for listener in LISTENERS:
            listener(network)
        return IHostMemory(json.dumps({"recorded_layers": len(network.layers)}).encode())
