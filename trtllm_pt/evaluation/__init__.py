"""How well a model predicts text: bits per byte, perplexity and accuracy, of one engine or of two."""
