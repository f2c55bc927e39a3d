"""Installs the stand-in in this process for good. An environment's .pth file imports this module."""

from __future__ import annotations

import sys

from tests.backends.tensorrt.standin.site import Finder

sys.meta_path.insert(0, Finder())
