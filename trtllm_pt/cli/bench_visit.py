"""`trtllm-pt bench visit`: the hidden command that netlab starts on every rank."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("visit", hidden=True)
@click.argument("request", type=click.Path(path_type=Path))
def command(request: Path) -> None:
    """Measure what the file REQUEST asks for. Rank 0 writes the answer."""
    from trtllm_pt.bench.contenders import Contender
    from trtllm_pt.bench.facts import Facts
    from trtllm_pt.bench.netlab.on_ranks import visit
    from trtllm_pt.bench.results import as_json_text
    from trtllm_pt.bench.static_batch import Case
    from trtllm_pt.files.atomic import write_text
    from trtllm_pt.model.config import read_json

    asked = read_json(request)
    contenders = [Contender(name, Facts.of(Path(folder))) for name, folder in asked["engines"].items()]
    found = visit(contenders, Case(**asked["case"]), asked["rounds"], asked["threads"], asked["seed"])
    if found is not None:
        write_text(Path(asked["answer"]), as_json_text(found))
