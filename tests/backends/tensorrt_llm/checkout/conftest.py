"""The processes that hold TensorRT-LLM's sources, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.backends.tensorrt_llm.checkout.harness import Checkout, checkout_path
from tests.backends.tensorrt_llm.checkout.worker import Job


@pytest.fixture(scope="session")
def checkout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """With the chosen tests' jobs begun."""
    workers = Checkout(checkout_path(), tmp_path_factory.mktemp("checkout"))
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    workers.begin(found["job"] for found in parameters if isinstance(found.get("job"), Job))
    yield workers
    workers.close()
