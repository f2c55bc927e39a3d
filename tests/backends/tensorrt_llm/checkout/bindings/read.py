"""Prints as JSON what NVIDIA's bindings are, for a process that can import `tensorrt`."""

from __future__ import annotations

import json
import re

import tensorrt


def signatures(doc: str) -> list[list[str]]:
    """The arguments' names in a pybind docstring, without self, of every overload."""
    heads = re.findall(r"^(?:\d+\. )?\w+\((.*?)\) ->", doc.strip(), re.MULTILINE)
    return [[part.split(":")[0].strip() for part in re.split(r",\s*(?=\w+:)", head)][1:] for head in heads]


def main() -> None:
    classes = {name: value for name, value in vars(tensorrt).items() if isinstance(value, type)}
    enums = {name: found for name, value in classes.items() if (found := getattr(value, "__members__", None))}
    methods = {name: value for name, value in vars(tensorrt.INetworkDefinition).items() if name.startswith("add_")}
    print(
        json.dumps(
            {
                "version": tensorrt.__version__,
                "enums": {name: {key: int(value) for key, value in found.items()} for name, found in enums.items()},
                "classes": sorted(set(classes) - set(enums)),
                "methods": {name: signatures(value.__doc__ or "") for name, value in methods.items()},
            }
        )
    )


main()
