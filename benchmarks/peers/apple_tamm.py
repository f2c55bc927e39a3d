"""Apple's tamm, where Parallel Track models come from: its own greedy generator, in eager PyTorch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import tamm
import torch
from side import Prompts, main
from tamm.generation.token_generators.greedy import GreedyTokenGenerator
from tamm.models.afm_text.afm_pt_moe import AFMParallelTrackMoEConfig
from tamm.utils import json as tamm_json

_WINDOW = 4096  # longer than any sequence here


def convert(source: Path, target: Path) -> None:
    """Sizes, as trtllm_pt's config.json has them, to a dense model with random weights."""
    from safetensors.torch import save_file

    c = json.loads(source.read_text())
    config = AFMParallelTrackMoEConfig(
        vocab_size=c["vocab_size"],
        num_tracks=c["tracks"],
        num_layers_per_track=c["num_layers"],
        num_layers_per_track_per_sync_point=c["block_depth"],
        hidden_dim=c["hidden_size"],
        attention_hidden_dim=c["num_heads"] * c["head_size"],
        dense_feed_forward_hidden_dim=c["intermediate_size"],
        num_heads=c["num_heads"],
        num_kv_heads=c["num_kv_heads"],
        rope_theta=c["rope_theta"],
        norm_eps=c["norm_eps"],
        attention_layer_pattern=("local_rope",),
        local_attention_window_size=_WINDOW,
        feed_forward_layer_pattern=("dense",),
    )
    torch.manual_seed(0)
    model = config.create_module().to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.02)
    target.mkdir()
    (target / "config.json").write_text(tamm_json.dumps(config))
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, target / "model.safetensors")


class Tamm:
    version = tamm.__version__

    def __init__(self, folder: str, threads: int) -> None:
        from safetensors.torch import load_file

        torch.set_num_threads(threads)
        config = tamm_json.loads((Path(folder) / "config.json").read_text())
        self._model = config.create_module().to(torch.bfloat16).eval()
        self._model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        # What the generator asks of a model, and this one lacks.
        self._model.config = SimpleNamespace(
            num_layers=config.num_layers_per_track,
            num_tracks=config.num_tracks,
            vocab_size=config.vocab_size,
            hidden_dim=config.hidden_dim,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
        )

    def generate(self, prompts: Prompts, tokens: int, stamp: Callable[[], None]) -> list[list[int]]:
        generator = GreedyTokenGenerator(self._model, eos_id=-1, pad_id=-1, cache_dtype=torch.bfloat16)
        choose = generator.next_token_logic

        def stamped(*args: object, **options: object) -> object:
            chosen = choose(*args, **options)
            stamp()
            return chosen

        generator.next_token_logic = stamped
        rows: list[list[int]] = generator.generate(torch.tensor(prompts), tokens).token_ids.tolist()
        return rows


if __name__ == "__main__":
    main(convert, Tamm)
