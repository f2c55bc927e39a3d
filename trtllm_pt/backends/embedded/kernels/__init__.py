"""The C++ ops of the embedded engine: compile them (build.py), load them (library.py), and give torch the shapes of
their results (fakes.py)."""
