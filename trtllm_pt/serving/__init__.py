"""Triton: the model repository, the Python models in it, and the server around them."""
