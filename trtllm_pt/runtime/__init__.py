"""Running engines: LLM, the runtime protocol and its implementations, and what a rank does."""
