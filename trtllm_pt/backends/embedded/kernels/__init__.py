"""The embedded engine's C++ ops: compile them (`build_library`), load them (`load`), give torch their shapes."""
