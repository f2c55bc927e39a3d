"""Read models (MODEL_DIR, the Llama family, tamm), initialise random ones, and read and write checkpoints (CKPT)."""
