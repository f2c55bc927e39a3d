"""Serving: Triton, its model repository, our Python models, and the two HTTP ports that `serve` puts before Triton."""
