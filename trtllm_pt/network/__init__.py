"""The reference network (reference.py), and the walk of a sync schedule that the backends' networks use (walk.py)."""
