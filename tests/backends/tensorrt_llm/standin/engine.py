"""All ranks of a checkpoint as `trtllm-build` makes them, and the C++ runtime's part in running them.

The runtime knows an engine by its config.json alone: how many KV heads a rank's cache has it works out of the totals
there, and windows come from the runtime defaults.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.backends.tensorrt_llm.standin.functional import data_of, tensor
from tests.backends.tensorrt_llm.standin.layers import Attention, AttentionParams, KeyValueCacheParams
from tests.backends.tensorrt_llm.standin.models import PretrainedConfig
from tests.backends.tensorrt_llm.standin.module import Parameter
from tests.backends.tensorrt_llm.standin.net import plugin_config
from tests.backends.tensorrt_llm.standin.trt import DataType
from tests.backends.tensorrt_llm.standin.world import Collective, RankState, World, enter

INT32, INT64 = DataType.INT32, DataType.INT64


class Engines:
    """The ranks' networks, and their KV caches of `requests` requests of `max_seq_len` tokens."""

    def __init__(self, model_map: dict[str, Any], checkpoint: Path) -> None:
        config = PretrainedConfig.from_checkpoint(str(checkpoint))
        cls = model_map[config.architecture]
        self.models = []
        for rank in range(config.mapping.world_size):
            own = copy.deepcopy(config)
            own.set_rank(rank)
            self.models.append(_optimised(cls.from_checkpoint(str(checkpoint), config=own)))
        self.config = json.loads(json.dumps(self.models[0].config.to_dict()))  # as the engine's config.json has it
        self.world = World(len(self.models))

    def run(
        self, prompts: Sequence[Sequence[int]], forced: Sequence[Sequence[int]], joins: Sequence[int]
    ) -> tuple[list[torch.Tensor], list[list[Collective]]]:
        """Prefill, then a step for each forced token; request i joins at step joins[i].

        Returns per request the logits [1 + its forced tokens, padded vocabulary], and per step the collectives.
        """
        runtime = Runtime(self.config, [len(p) + len(f) for p, f in zip(prompts, forced, strict=True)])
        states = [
            RankState(rank, self.world, _plugins(self.config), pools=runtime.new_pools())
            for rank in range(self.world.ranks)
        ]
        done = [0] * len(prompts)  # tokens in the cache
        sequences = [[*p, *f] for p, f in zip(prompts, forced, strict=True)]
        logits: list[list[torch.Tensor]] = [[] for _ in prompts]
        collectives = []
        for step in range(max(joins) + 1 + max(len(f) for f in forced)):
            chunks = {i: [sequences[i][done[i]]] for i in range(len(prompts)) if 0 < done[i] < len(sequences[i])}
            new = {i: list(prompt) for i, prompt in enumerate(prompts) if joins[i] == step}
            batch = new | chunks  # context requests come first
            out, seen = self._step(states, runtime, batch, done, set(new))
            collectives.append(seen)
            for (request, tokens), row in zip(batch.items(), out, strict=True):
                done[request] += len(tokens)
                logits[request].append(row)
        return [torch.stack(rows) for rows in logits], collectives

    def _step(
        self, states: list[RankState], runtime: Runtime, batch: dict[int, list[int]], done: list[int], new: set[int]
    ) -> tuple[torch.Tensor, list[Collective]]:
        def program(rank: int) -> None:
            state = states[rank]
            state.tokens = sum(map(len, batch.values()))
            state.outputs.clear()
            state.collectives.clear()
            enter(state)
            self.models[rank](**runtime.inputs(state, batch, done, new))

        self.world.run(program)
        outputs = [data_of(state.outputs["logits"]) for state in states]
        assert all(state.outputs["logits"].dtype.name == "FLOAT" for state in states), (
            "the runtime wants float32 logits"
        )
        assert all(torch.equal(outputs[0], other) for other in outputs), "the ranks have different logits"
        return outputs[0], list(states[0].collectives)


def _optimised(model: Any) -> Any:
    """What the builder does after loading where FP8 context attention is on: stock layers get their output's scale."""
    if _plugins(model.config.to_dict()).use_fp8_context_fmha:
        for _, module in model.named_modules():
            if isinstance(module, Attention):
                scale = 1.0 / module.dense.activation_scaling_factor.raw_value
                module.attention_output_orig_quant_scale = Parameter(value=np.float32(scale), dtype="float32")
    return model


def _plugins(config: dict[str, Any]) -> Any:
    quantization = config["quantization"]
    return plugin_config(
        config["dtype"], quantization["kv_cache_quant_algo"] == "FP8", quantization["quant_algo"] == "FP8"
    )


class Runtime:
    """Blocks, pools and host tensors, from the engine's config alone."""

    def __init__(self, config: dict[str, Any], lengths: list[int]) -> None:
        ranks = config["mapping"]["tp_size"]
        self.layers, self.vocab = config["num_hidden_layers"], config["vocab_size"]
        self.kv_heads = max(config["num_key_value_heads"] // ranks, 1)
        self.head_size = config["head_size"]
        self.block, self.max_seq_len = 32, max(lengths)
        defaults = config["runtime_defaults"] or {"max_attention_window": [self.max_seq_len] * self.layers}
        self.windows = defaults["max_attention_window"]
        # Layers of one window share a pool.
        kinds = sorted(set(self.windows))
        self.pool_of = [kinds.index(window) for window in self.windows]
        self.place_in = [self.pool_of[:layer].count(pool) for layer, pool in enumerate(self.pool_of)]
        per_request = -(-self.max_seq_len // self.block)
        blocks = torch.randperm(len(lengths) * per_request, generator=torch.Generator().manual_seed(1))
        self.blocks = blocks.view(len(lengths), per_request)

    def new_pools(self) -> dict[int, torch.Tensor]:
        """By address: [layers of the pool, blocks of K and V, G, P, D]. What was never written is NaN."""
        shape = (2 * self.blocks.numel(), self.kv_heads, self.block, self.head_size)
        return {_address(pool): torch.full((self.pool_of.count(pool), *shape), torch.nan) for pool in set(self.pool_of)}

    def inputs(self, state: RankState, batch: dict[int, list[int]], done: list[int], new: set[int]) -> dict[str, Any]:
        """The network's inputs. batch: request -> its tokens; done: what each has in the cache; new: its prompts."""
        requests, counts = list(batch), [len(tokens) for tokens in batch.values()]
        past = [done[i] for i in requests]
        pools = len(set(self.pool_of))
        offsets = torch.stack((2 * self.blocks[requests], 2 * self.blocks[requests] + 1), 1).expand(pools, -1, -1, -1)
        prompts = [len(batch[i]) if i in new else 1 for i in requests]  # of one that generates nobody reads it
        return {
            "input_ids": _host([token for tokens in batch.values() for token in tokens]),
            "position_ids": _host([p + i for p, count in zip(past, counts, strict=True) for i in range(count)]),
            "use_cache": True,
            "last_token_ids": _host(np.cumsum(counts)),
            "attention_mask": None,
            "kv_cache_params": KeyValueCacheParams(
                past_key_value=[None] * self.layers,
                host_past_key_value_lengths=_host(past),
                host_max_attention_window_sizes=_host(self.windows),
                host_sink_token_length=_host([0]),
                kv_cache_block_offsets=tensor(offsets, INT32),
                host_kv_cache_block_offsets=tensor(offsets, INT32),
                host_kv_cache_pool_pointers=_host([[_address(pool), 0] for pool in range(pools)], INT64),
                host_kv_cache_pool_mapping=_host(list(zip(self.pool_of, self.place_in, strict=True))),
                cache_indirection=_host(np.zeros((len(batch), 1, self.max_seq_len))),
            ),
            "attention_params": AttentionParams(
                sequence_length=_host([p + count for p, count in zip(past, counts, strict=True)]),
                context_lengths=_host(prompts),
                host_context_lengths=_host(prompts),
                max_context_length=self.max_seq_len,
                host_request_types=_host([int(i not in new) for i in requests]),
                host_runtime_perf_knobs=_host([-1] * 16, INT64),
                host_context_progress=_host([0], INT64),
            ),
        }


def _address(pool: int) -> int:
    return 0x7F0000000000 + 4096 * pool


def _host(values: Any, dtype: DataType = INT32) -> Any:
    return tensor(torch.as_tensor(values), dtype)
