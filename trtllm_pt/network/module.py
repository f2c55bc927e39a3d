"""torch's module with the types that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn


class Module(nn.Module):
    """A module whose call gives a tensor."""

    if TYPE_CHECKING:

        def __call__(self, *args: Any) -> Tensor: ...
