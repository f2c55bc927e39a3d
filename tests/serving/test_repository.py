"""The generated model repository: the tensors and keys of TensorRT-LLM's own, for either engine."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.configs import SMALL
from trtllm_pt.backends import BuildOptions, backends
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig, read_json
from trtllm_pt.serving.triton.repository import write_repository
from trtllm_pt.serving.triton.server import engine_folder
from trtllm_pt.serving.triton.tensors import MODELS

pytest.importorskip("tritonclient", reason="no Triton client here: pip install -e '.[embedded,dev,serve]'")
# The five models of TensorRT-LLM 1.3.0rc3's inflight batcher repository, without their text: [name, type, dims, flags].
WANTED = json.loads((Path(__file__).parent / "inflight_batcher.json").read_text())
FILES = {"embedded": "model.pt2", "tensorrt_llm": "rank0.engine"}
ROOT = Path(__file__).parents[2]
SMALL_OPTIONS = BuildOptions(max_batch_size=4, max_num_tokens=64)
WINDOWED = SMALL.replace(attention_pattern=("sliding", "sliding", "global"), window=9)


def engines(
    folder: Path,
    kind: str,
    model: ModelConfig = SMALL,
    options: BuildOptions = SMALL_OPTIONS,
) -> Path:
    """An engine directory as far as `repo` reads it: its config, and the file that tells which engine it is."""
    folder.mkdir(parents=True)
    checkpoint = CheckpointManifest(model=model, ranks=2, dtype="float32")
    manifest = backends()[kind].manifest(checkpoint, options.resolved(model))
    config = manifest.to_json()
    config["build_config"]["plugin_config"] = dict.fromkeys(
        ("context_fmha", "remove_input_padding", "use_paged_context_fmha"), True
    )
    config["version"] = "1.2.1"  # of TensorRT-LLM, where it is TensorRT-LLM that writes the file
    (folder / "config.json").write_text(json.dumps(config))
    (folder / FILES[kind]).touch()
    return folder


@pytest.fixture(params=FILES)
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_repository(engines(tmp_path / "engines", request.param), tmp_path / "repository")
    return tmp_path / "repository"


def parse(path: Path) -> Any:
    """A config.pbtxt, by the protobuf schema of Triton's own client."""
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig as TritonConfig

    return text_format.Parse(path.read_text(), TritonConfig())


def tensors(listed: Any) -> dict[str, Any]:
    from tritonclient.grpc.model_config_pb2 import DataType

    found = {}
    for t in listed:
        flags = {"reshape": t.HasField("reshape"), "optional": getattr(t, "optional", False)}
        flags["allow_ragged_batch"] = getattr(t, "allow_ragged_batch", False)
        assert not list(t.reshape.shape)
        assert t.name not in found, f"{t.name} twice"
        found[t.name] = [DataType.Name(t.data_type), list(t.dims), {name for name, on in flags.items() if on}]
    return found


def wanted_tensors(listed: list[Any]) -> dict[str, Any]:
    types = {"${logits_datatype}": "TYPE_FP32", "${prompt_embedding_table_data_type}": "TYPE_FP16"}
    types["${encoder_input_features_data_type}"] = "TYPE_FP16"
    return {name: [types.get(kind, kind), dims, set(flags)] for name, kind, dims, flags in listed}


def connections(config: Any) -> set[tuple[str, str, str]]:
    return {
        (kind, key, value)
        for step in config.ensemble_scheduling.step
        for kind, maps in (("input_map", step.input_map), ("output_map", step.output_map))
        for key, value in maps.items()
    }


# What NVIDIA's backend would misread or ignore, as inputs of the ensemble and of the engine's model.
ENSEMBLE_LACKS = {
    *("guided_decoding_guide_type", "guided_decoding_guide"),
    *("num_return_sequences", "length_penalty", "presence_penalty", "frequency_penalty"),
    *("prompt_embedding_table", "prompt_vocab_size", "lora_task_id", "lora_weights", "lora_config"),
}
LACKS = {
    "ensemble": ENSEMBLE_LACKS,
    "tensorrt_llm": ENSEMBLE_LACKS - {"length_penalty"}
    | {"len_penalty", "early_stopping", "beam_search_diversity_rate", "prompt_table_extra_ids"}
    | {"encoder_input_features", "encoder_output_lengths", "decoder_input_ids", "decoder_input_lengths"}
    | {"cross_attention_mask", "skip_cross_attn_blocks", "mrope_rotary_cos_sin", "mrope_position_deltas"}
    | {"draft_input_ids", "draft_logits", "draft_acceptance_threshold"}
    | {"lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"},
}


def lacks(repository: Path, model: str) -> set[str]:
    backend = parse(repository / "tensorrt_llm" / "config.pbtxt").backend
    return set() if backend == "python" else LACKS.get(model, set())


def own_outputs(repository: Path, model: str) -> dict[str, Any]:
    """The outputs of our Python model that TensorRT-LLM's models do not have."""
    if model != "tensorrt_llm" or parse(repository / model / "config.pbtxt").backend != "python":
        return {}
    shapes = {"output_top": [-1, -1, -1], "context_top": [-1, -1]}
    found: dict[str, Any] = {
        "context_log_probs": ["TYPE_FP32", [-1], set()],
        "num_cached_tokens": ["TYPE_INT32", [1], set()],
    }
    for name, dims in shapes.items():
        found |= {f"{name}_ids": ["TYPE_INT32", dims, set()], f"{name}_log_probs": ["TYPE_FP32", dims, set()]}
    return found


@pytest.mark.parametrize("model", MODELS)
def test_tensors_and_keys_are_those_of_tensorrt_llm(repository: Path, model: str) -> None:
    config, wanted = parse(repository / model / "config.pbtxt"), WANTED[model]
    inputs = wanted_tensors(wanted["input"])
    assert lacks(repository, model) <= set(inputs)
    assert tensors(config.input) == {n: t for n, t in inputs.items() if n not in lacks(repository, model)}
    assert tensors(config.output) == {**wanted_tensors(wanted["output"]), **own_outputs(repository, model)}
    assert set(config.parameters) == set(wanted["parameters"])
    assert (config.name, config.max_batch_size) == (model, 4)


def test_what_is_not_filled_in_keeps_the_name_that_fill_template_knows(repository: Path) -> None:
    for model in MODELS:
        for key, parameter in parse(repository / model / "config.pbtxt").parameters.items():
            value, template = parameter.string_value, WANTED[model]["parameters"][key]
            assert value == template if "${" in value or "${" not in template else value


def test_the_ensemble_connects_what_tensorrt_llms_does(repository: Path) -> None:
    config = parse(repository / "ensemble" / "config.pbtxt")
    models = [step.model_name for step in config.ensemble_scheduling.step]
    assert models == ["preprocessing", "tensorrt_llm", "postprocessing"]
    wanted = {tuple(connection) for connection in WANTED["ensemble"]["maps"]}
    gone = lacks(repository, "tensorrt_llm")
    unread = {value for kind, key, value in wanted if kind == "input_map" and key in gone}
    assert connections(config) == {connection for connection in wanted if connection[2] not in unread}


def test_queues_batching_and_streams(repository: Path) -> None:
    configs = {model: parse(repository / model / "config.pbtxt") for model in MODELS}
    assert {m for m, c in configs.items() if c.model_transaction_policy.decoupled} == {
        "tensorrt_llm",
        "tensorrt_llm_bls",
    }
    assert {m for m, c in configs.items() if c.HasField("dynamic_batching")} == {
        "preprocessing",
        "tensorrt_llm",
        "postprocessing",
    }
    queue = configs["tensorrt_llm"].dynamic_batching
    assert list(queue.preferred_batch_size) == [4]
    assert queue.default_queue_policy.max_queue_size == 1024


def test_each_engine_has_its_backend_and_its_path(tmp_path: Path) -> None:
    for kind, backend, path in (
        ("embedded", "python", "../../engines/demo"),
        ("tensorrt_llm", "tensorrtllm", str(tmp_path / "tensorrt_llm/engines/demo")),
    ):
        here = tmp_path / kind
        write_repository(engines(here / "engines" / "demo", kind), here / "repository")
        config = parse(here / "repository" / "tensorrt_llm" / "config.pbtxt")
        assert config.backend == backend
        assert config.parameters["gpt_model_path"].string_value == path
        text = parse(here / "repository" / "preprocessing" / "config.pbtxt").parameters
        assert text["tokenizer_dir"].string_value == f"{path}/tokenizer"
        code = here / "repository" / "tensorrt_llm" / "1" / "model.py"
        assert code.exists() == (kind == "embedded")


def test_a_window_is_written_for_every_layer(tmp_path: Path) -> None:
    options = {"engine_path": "/engines/demo", "max_queue_size": 7}
    write_repository(engines(tmp_path / "e", "tensorrt_llm", WINDOWED), tmp_path / "r", **options)
    config = parse(tmp_path / "r" / "tensorrt_llm" / "config.pbtxt")
    assert config.parameters["max_attention_window_size"].string_value == "9,9,128,9,9"
    # Its chunks are too small for windowed kernels, and each window would reuse another beginning of a prompt.
    assert config.parameters["enable_chunked_context"].string_value == "false"
    assert config.parameters["enable_kv_cache_reuse"].string_value == "false"
    assert config.parameters["gpt_model_path"].string_value == "/engines/demo"
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7


def test_speculation_is_a_parameter_of_the_engine(tmp_path: Path) -> None:
    write_repository(engines(tmp_path / "e", "embedded"), tmp_path / "r", speculative="ngram:4")
    config = parse(tmp_path / "r" / "tensorrt_llm" / "config.pbtxt")
    assert config.parameters["speculative"].string_value == "ngram:4"


@pytest.mark.parametrize(
    ("engine", "speculative", "message"),
    [
        ("embedded", "ngram:0", "speculative ('ngram:0') must be ngram or ngram:K; K (1 to 64)"),
        ("tensorrt_llm", "ngram", "speculative ('ngram') is not supported by"),
    ],
)
def test_speculation_refused(engine: str, speculative: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        write_repository(
            engines(tmp_path / "e", engine), tmp_path / "r", engine_path="/engines", speculative=speculative
        )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("engine", FILES)
def test_an_engine_without_windows_gets_chunks_and_reuse(engine: str, tmp_path: Path) -> None:
    write_repository(engines(tmp_path / "e", engine), tmp_path / "r", engine_path="/engines")
    parameters = parse(tmp_path / "r" / "tensorrt_llm" / "config.pbtxt").parameters
    assert parameters["enable_chunked_context"].string_value == "true"
    assert parameters["enable_kv_cache_reuse"].string_value == "true"


def test_log_probs_of_tensorrt_llm_are_over_the_whole_vocabulary(tmp_path: Path) -> None:
    write_repository(engines(tmp_path / "e", "tensorrt_llm"), tmp_path / "r", engine_path="/engines")
    parameters = parse(tmp_path / "r" / "tensorrt_llm" / "config.pbtxt").parameters
    assert parameters["normalize_log_probs"].string_value == "false"


def test_the_repository_in_git_is_what_the_command_writes(tmp_path: Path) -> None:
    """`trtllm-pt repo engines/demo-2 -o triton_model_repo`, after `make demo`."""
    folder = engines(
        tmp_path / "e",
        "embedded",
        ModelConfig.from_json(read_json(ROOT / "pretrained" / "stdlib-pt" / "config.json")),
        BuildOptions(),
    )
    write_repository(folder, tmp_path / "fresh", engine_path="../../engines/demo-2")
    assert files(ROOT / "triton_model_repo") == files(tmp_path / "fresh")


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def test_refusals(tmp_path: Path) -> None:
    folder = engines(tmp_path / "e", "tensorrt_llm")
    with pytest.raises(UsageError, match=r"engine_path \('engines'\) must be absolute"):
        write_repository(folder, tmp_path / "r", engine_path="engines")
    with pytest.raises(UsageError, match="there is no engine directory"):
        write_repository(tmp_path / "none", tmp_path / "r")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "file").touch()
    with pytest.raises(UsageError, match="already exists"):
        write_repository(folder, tmp_path / "r")


def test_repo_without_tritonclient_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = engines(tmp_path / "e", "embedded")
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    with pytest.raises(UsageError, match=r"needs tritonclient.*pip install 'tritonclient\[grpc\]") as caught:
        write_repository(folder, tmp_path / "r")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "r").exists()


def test_where_the_engines_are_is_read_in_any_form_of_protobuf_text(tmp_path: Path) -> None:
    (tmp_path / "r" / "tensorrt_llm").mkdir(parents=True)
    path = tmp_path / "r" / "tensorrt_llm" / "config.pbtxt"
    written = "parameters: < # a comment\n value < string_value: '../../e' > key: 'gpt_model_path' > not_known_here: 1"
    path.write_text(written)
    assert engine_folder(tmp_path / "r") == tmp_path / "e"
    path.write_text('name: "tensorrt_llm"')
    with pytest.raises(UsageError, match="has no gpt_model_path"):
        engine_folder(tmp_path / "r")
    path.write_text("max_batch_size: ${triton_max_batch_size}")
    with pytest.raises(UsageError, match=r"config\.pbtxt is not a Triton model configuration: 1:17"):
        engine_folder(tmp_path / "r")


@pytest.mark.skipif("TRTLLM_CHECKOUT" not in os.environ, reason="TRTLLM_CHECKOUT names no sources of TensorRT-LLM")
@pytest.mark.parametrize("model", MODELS)
def test_the_list_is_that_of_tensorrt_llms_sources(model: str, tmp_path: Path) -> None:
    templates = Path(os.environ["TRTLLM_CHECKOUT"]) / "triton_backend" / "all_models" / "inflight_batcher_llm"
    text = (templates / model / "config.pbtxt").read_text()
    unquoted = {"decoupled_mode": "true", "logits_datatype": "TYPE_FP32"}
    unquoted |= {"prompt_embedding_table_data_type": "TYPE_FP16", "encoder_input_features_data_type": "TYPE_FP16"}
    text = re.sub(r'(?<!")\$\{(\w+)\}(?!")', lambda found: unquoted.get(found[1], "4"), text)
    (tmp_path / "config.pbtxt").write_text(text)
    config = parse(tmp_path / "config.pbtxt")
    once = {t.name: t for t in config.output}.values()  # one stands twice in the ensemble's
    assert tensors(config.input) == wanted_tensors(WANTED[model]["input"])
    assert tensors(once) == wanted_tensors(WANTED[model]["output"])
    assert set(config.parameters) == set(WANTED[model]["parameters"])
    assert connections(config) == {tuple(connection) for connection in WANTED[model].get("maps", [])}
