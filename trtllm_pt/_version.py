"""The version of the installed package, which the build takes from the git tag."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("trtllm_pt")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
