"""Compare the planner's predictions with published measurements, and fit its engines to them."""
