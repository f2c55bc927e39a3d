"""Puts the compiled ops of the embedded engine into a wheel, when TRTLLM_PT_BUILD_OPS=1 asks for it (`make wheel`).

Every other build makes a pure Python package and needs neither torch nor a compiler: such an installation compiles the
ops when they are first used.
"""

import os
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class BuildPyWithOps(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        sys.path.insert(0, str(Path(__file__).parent))
        from trtllm_pt.backends.embedded.kernels import build, shipped

        folder = Path(self.build_lib) / shipped.FOLDER.relative_to(Path(__file__).resolve().parent)
        build.build_library(folder)
        shipped.describe(folder)


class WheelForAnyPython(bdist_wheel):
    """The ops are no extension module: torch loads them, and they do not depend on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


if os.environ.get("TRTLLM_PT_BUILD_OPS") == "1":
    setup(distclass=PlatformDistribution, cmdclass={"build_py": BuildPyWithOps, "bdist_wheel": WheelForAnyPython})
else:
    setup()
