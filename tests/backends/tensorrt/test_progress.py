"""The share that is done, from the phases of TensorRT's progress monitor."""

from __future__ import annotations

from trtllm_pt.backends.tensorrt.progress import Progress

# The events of a build of two profiles without a GPU: + starts a phase of so many steps, = ends a step, - ends a phase.
# An inner phase ends after the step of the outer one in which it is.
BUILD = """
+ Building engine: 6
+ Cloning network graph: 2
= Cloning network graph: 0
= Cloning network graph: 1
- Cloning network graph
= Building engine: 0
+ Building engine from subgraph: 1
+ Computing profile costs: 10
+ Timing tactics: 2
= Timing tactics: 0
= Timing tactics: 1
- Timing tactics
= Computing profile costs: 0
= Computing profile costs: 1
= Computing profile costs: 2
+ Determining refit engines: 1
= Determining refit engines: 0
= Computing profile costs: 3
= Computing profile costs: 4
- Determining refit engines
= Computing profile costs: 5
= Computing profile costs: 6
= Computing profile costs: 7
= Computing profile costs: 8
= Computing profile costs: 9
- Computing profile costs
= Building engine from subgraph: 0
- Building engine from subgraph
= Building engine: 5
- Building engine
"""


def test_the_share_of_a_build() -> None:
    shares: list[float] = []
    progress = Progress(lambda share: shares.append(round(share, 3)))
    for line in BUILD.strip().splitlines():
        event, name, number = line[0], *(line[2:].split(": ") + ["0"])[:2]
        {
            "+": lambda name, number: progress.start(name, int(number)),
            "=": lambda name, number: progress.step(name, int(number)),
            "-": lambda name, number: progress.finish(name),
        }[event](name, number)
    assert shares == [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
