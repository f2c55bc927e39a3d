"""Find the machine and the sync schedule that serve a model fastest: `python examples/plan_purchase.py pt-30b`."""

import sys

from trtllm_pt.model.presets import preset
from trtllm_pt.planner import MACHINES, Workload, load_engine, load_machine, plan


def main(model: str = "pt-30b") -> None:
    load = Workload(input=1024, output=256, concurrency=64)
    print(f"{model}, {load.concurrency} concurrent requests of {load.input} + {load.output} tokens")
    print(f"{'machine':8} {'ranks':>5}  {'schedule':10} {'TTFT':>9} {'per token':>10} {'tokens/s':>9}")
    for name in MACHINES:  # load_machine also accepts a JSON file with your own measurements
        for ranks in (2, 4, 8):
            best = plan(preset(model), load_machine(name), load_engine("tensorrt_llm"), load, ranks).recommended
            if best is None or best.served.ttft is None:
                print(f"{name:8} {ranks:5}  no schedule fits")
                continue
            times = f"{1e3 * best.served.ttft:6.1f} ms {1e3 * best.served.tpot:7.2f} ms"
            print(f"{name:8} {ranks:5}  {best.name:10} {times} {best.served.tokens_per_second:9.0f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
