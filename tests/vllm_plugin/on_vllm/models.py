"""The models of these tests.

vLLM's CPU kernels need heads of 32 and, for experts, widths that are multiples of 32. Three layers are a block of two
and one of one, and every layer costs time to compile.
"""

from __future__ import annotations

from pathlib import Path

from tests.checkpoint.models import saved
from tests.configs import EVERYTHING, LLAMA, OTHER_SCHEDULES, PRETRAINED, SMALL
from tests.vllm_plugin.on_vllm.quantized import SCHEMES, quantized
from trtllm_pt.model.config import ModelConfig

_SIZES = {"hidden_size": 64, "head_size": 32, "num_layers": 3}
_EXPERTS = {"ffn_pattern": ("dense", "moe"), "num_experts": 4, "experts_per_token": 2, "moe_intermediate_size": 32}
RANDOM: dict[str, ModelConfig] = {
    name: config.replace(**_SIZES)
    for name, config in {
        "pt": SMALL,
        "everything": EVERYTHING,
        "llama": LLAMA,
        "tp, experts": LLAMA.replace(num_kv_heads=1, qk_norm=True, **_EXPERTS),
        **OTHER_SCHEDULES,
    }.items()
}
NAMES = ["pretrained", *RANDOM]
_TWO_TRACKS = RANDOM["pt"].replace(tracks=2)  # whose matrices are stored quantised by one of SCHEMES
TOKENS, LONGEST = 12, 64  # generated for each prompt; of a prompt
ALONE = (12,)  # the prompts that are also generated for one at a time


def config_of(name: str) -> ModelConfig:
    if name in SCHEMES:
        return _TWO_TRACKS
    return ModelConfig.from_file(PRETRAINED / "config.json") if name == "pretrained" else RANDOM[name]


def folder_of(name: str, root: Path) -> Path:
    """The folder of a model, which is made below `root` if it is not there.

    Beside the folder of a quantised model are `exact` and `rounded`: before, and with the rounded values in float32.
    """
    if name == "pretrained":
        return PRETRAINED
    folder = root / name / "stored" if name in SCHEMES else root / name
    if not folder.exists():
        made = folder.with_name("exact") if name in SCHEMES else folder
        saved(config_of(name), made)
        if name in SCHEMES:
            quantized(made, name, folder, folder.with_name("rounded"))
    return folder


def prompts(vocab_size: int) -> list[list[int]]:
    """32 prompts of 1 to 63 tokens. The last eight have a common beginning, which vLLM's prefix cache keeps."""
    alone = [[(7 * place * place + 3 * number) % vocab_size for place in range(1 + 2 * number)] for number in range(24)]
    common = [(11 * place + 5) % vocab_size for place in range(40)]
    return alone + [[*common, *range(number)] for number in range(16, 24)]
