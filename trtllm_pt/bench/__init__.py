"""Measure engines and their all-reduces. `trtllm-pt bench` and the scripts in `benchmarks/` share this code.

Every engine is measured through the runtime protocol, so that all backends are measured alike.
"""
