"""Makes api.json: python -m tests.backends.tensorrt_llm.standin.extract CATALOGUE.json ENUMS.json

CATALOGUE.json lists TensorRT-LLM's modules with their symbols, parameters, attributes and members; ENUMS.json holds
TensorRT's enums. Kept is what a network definition can reach: no annotations, a line for a signature.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MODULES = (
    "functional",
    "mapping",
    "module",
    "network",
    "parameter",
    "_common",
    "_utils",
    "layers.activation",
    "layers.attention",
    "layers.cast",
    "layers.embedding",
    "layers.linear",
    "layers.mlp",
    "layers.moe",
    "layers.normalization",
    "models.generation_mixin",
    "models.modeling_utils",
    "plugin.plugin",
    "quantization.layers",
    "quantization.mode",
    "quantization.quantize",
    "top_model_mixin",
)
PACKAGES = ("", "layers", "models", "plugin", "quantization")
ENUMS = (
    "ActivationType",
    "DataType",
    "ElementWiseOperation",
    "MatrixOperation",
    "ReduceOperation",
    "SampleMode",
    "TensorLocation",
    "UnaryOperation",
)
# Read in TensorRT-LLM's source: the catalogue has not this module.
ADDED = {
    "tensorrt_llm.quantization.functional": {
        "quantize": "(input, scale_factor, dtype, axis=-1)",
        "dequantize": "(input, scale_factor, axis=-1, output_type='float16')",
        "preprocess_weights_for_mixed_gemm": "(tensor, quant_mode, act_dtype, sm_=-1, do_weight_interleave=True)",
    }
}
_STARS = {"var_positional": "*", "var_keyword": "**"}


def main(catalogue: Path, enums: Path) -> None:
    api, tensorrt = json.loads(catalogue.read_text()), json.loads(enums.read_text())
    names = [f"tensorrt_llm.{name}" for name in MODULES]
    defaults = api["bindings"]["tensorrt_llm.bindings.executor"]["classes"]["RuntimeDefaults"]
    extracted = {
        "version": api["_about"]["version"],
        "modules": {name: _symbols(api["modules"][name]["symbols"]) for name in names} | ADDED,
        "exports": _exports(api["exports"], names),
        "runtime_defaults": _signature([{"name": "self", "kind": "positional_or_keyword"}, *defaults["init"][0]]),
        "tensorrt": {
            "enums": {name: tensorrt["enums"][name] for name in ENUMS},
            "dtypes": tensorrt["dtype_aliases"],
        },
    }
    Path(__file__).with_name("api.json").write_text(json.dumps(extracted, indent=1) + "\n")


def _symbols(symbols: dict[str, Any]) -> dict[str, Any]:
    return {name: _symbol(symbol) for name, symbol in symbols.items()}


def _symbol(symbol: dict[str, Any]) -> Any:
    match symbol["kind"]:
        case "function":
            return _signature(symbol["params"])
        case "enum":
            methods = {name: _method(method) for name, method in symbol.get("methods", {}).items()}
            return {"enum": symbol["bases"][0], "members": symbol["members"], "methods": methods}
        case "class":
            return _class(symbol)
    return {"value": symbol["value"]}


def _class(symbol: dict[str, Any]) -> dict[str, Any]:
    fields = {field["name"]: field.get("default") for field in symbol.get("fields", ())}
    attributes = {*symbol.get("instance_attributes", ()), *symbol.get("registered_parameters", ())}
    return {
        "bases": symbol["bases"],
        "attributes": sorted(attributes | set(symbol.get("class_attributes", ()))),
        "fields": fields,
        "methods": {name: _method(method) for name, method in symbol.get("methods", {}).items()},
        "nested": _symbols(symbol.get("nested", {})),
    }


def _method(method: dict[str, Any]) -> str:
    kind = "property" if "cached_property" in method.get("decorators", ()) else method["kind"]
    return f"{kind} {_signature(method['params'])}"


def _signature(parameters: list[dict[str, Any]]) -> str:
    parts, keywords_only = [], False
    for parameter in parameters:
        name, kind = parameter["name"], parameter["kind"]
        if kind == "keyword_only" and not keywords_only:
            keywords_only = True
            if not any(part.startswith("*") for part in parts):
                parts.append("*")
        default = f"={parameter['default']}" if "default" in parameter else ""
        parts.append(_STARS.get(kind, "") + name + default)
    return f"({', '.join(parts)})"


def _exports(exports: dict[str, str], modules: list[str]) -> dict[str, dict[str, str]]:
    """Package -> name -> where it comes from, as far as that is kept."""
    found: dict[str, dict[str, str]] = {}
    for package in PACKAGES:
        prefix = f"tensorrt_llm.{package}" if package else "tensorrt_llm"
        for name, origin in exports.items():
            parent, _, child = name.rpartition(".")
            if parent == prefix and str(origin).rpartition(".")[0] in modules:
                found.setdefault(prefix, {})[child] = origin
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
