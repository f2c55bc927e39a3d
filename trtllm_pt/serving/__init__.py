"""Serving: Triton with its model repository and our Python models, and the ports of `serve` before it."""
