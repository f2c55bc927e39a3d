import pytest
import torch


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    from trtllm_pt.kernels.build import build_library

    return build_library(tmp_path_factory.mktemp("ops"))


@pytest.fixture(scope="session")
def ops(library):
    from trtllm_pt.kernels import fakes
    from trtllm_pt.kernels.library import load

    load(library)
    fakes.register()
    return torch.ops.trtllm_pt


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def dtype(request):
    return request.param
