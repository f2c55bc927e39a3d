import pytest
import torch


@pytest.fixture(scope="session")
def ops(library):
    from trtllm_pt.backends.embedded.kernels import fakes
    from trtllm_pt.backends.embedded.kernels.library import load

    load(library)
    fakes.register()
    return torch.ops.trtllm_pt


@pytest.fixture(autouse=True)
def _one_thread():
    """Small calls: waking a second thread on a busy machine costs more than the work. Tests that want two say so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def dtype(request):
    return request.param
