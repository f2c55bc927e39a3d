"""Sync-Point Drop (arXiv:2502.20727) for a dense model: which all-reduces it can lose, and how to repair it."""
