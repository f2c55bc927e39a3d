"""Formats in and out: MODEL_DIR, CKPT, the Llama family, tamm; random initialisation."""
