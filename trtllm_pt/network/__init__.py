"""The model, twice: reference.py (the plain truth) and embedded.py (run by walk.py)."""
