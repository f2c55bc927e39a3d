"""A typed base class for PyTorch modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn


class Module(nn.Module):
    """A module whose call returns a tensor."""

    if TYPE_CHECKING:

        def __call__(self, *args: Any) -> Tensor: ...
