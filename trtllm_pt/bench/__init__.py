"""Measuring engines: what the scripts in `benchmarks/` and `trtllm-pt bench` share. Engines run behind the protocol."""
