"""Predict what a sync schedule costs on a machine, before anything is bought or trained.

The formulas are in docs/planner.md.
"""

from trtllm_pt.planner.engines import Engine, engines, load_engine
from trtllm_pt.planner.machine import MACHINES, Machine, load_machine, machine_from_json
from trtllm_pt.planner.plan import Plan, Prediction, plan, predict
from trtllm_pt.planner.serving import Workload

__all__ = [
    "MACHINES",
    "Engine",
    "Machine",
    "Plan",
    "Prediction",
    "Workload",
    "engines",
    "load_engine",
    "load_machine",
    "machine_from_json",
    "plan",
    "predict",
]
