"""Every op in one AOTInductor graph with dynamic shapes; caches are graph inputs, written in place."""

import pytest
import torch
from torch import Tensor, nn

from tests.backends.embedded.kernels.plain import INV_FREQ, Batch, Shape, randn

pytestmark = pytest.mark.slow  # engines' graphs have the same ops: test_engine.py compares them with the reference

K, W, F, V, LAYERS = 2, 40, 24, 50, 3
SHAPE = Shape(tracks=K, heads=4, kv_heads=2, size=16, norm=True)


class Net(nn.Module):
    """Not a model: every op once a layer."""

    def __init__(self) -> None:
        super().__init__()
        ops = torch.ops.trtllm_pt
        self.table = nn.Buffer(ops.pack(randn(V, W)))
        self.norm = nn.Buffer(1 + 0.1 * randn(K, W))
        self.qkv = nn.Buffer(ops.pack(randn(K, SHAPE.width, W) / 6))
        self.bias = nn.Buffer(randn(K, W))
        self.out = nn.Buffer(ops.pack(randn(K, W, 64) / 8))
        self.gate_up = nn.Buffer(ops.pack(randn(K, 2, F, W) / 6))
        self.down = nn.Buffer(ops.pack(randn(K, W, F) / 5))
        self.router = nn.Buffer(randn(K, 4, W))
        self.many_up = nn.Buffer(ops.pack(randn(K, 4, 2, F, W) / 6))
        self.many_down = nn.Buffer(ops.pack(randn(K, 4, W, F) / 5))
        self.first = nn.Buffer(torch.tensor([3]))
        self.inv_freq = nn.Buffer(INV_FREQ[16])
        self.q_norm, self.k_norm = map(nn.Buffer, SHAPE.norms())

    def forward(self, ids: Tensor, starts: Tensor, offsets: Tensor, pages: Tensor, caches: list[Tensor]) -> Tensor:
        ops = torch.ops.trtllm_pt
        table = ops.rotary(ids, starts, offsets, self.inv_freq)
        x = ops.gather_rows(ids, self.table, W).unsqueeze(0)
        for cache in caches:
            qkv = ops.linear(ops.rms_norm(x, self.norm, 1e-5), self.qkv, None, SHAPE.width)
            heard = ops.attention(
                qkv, table, self.q_norm, self.k_norm, cache, starts, offsets, pages, 4, 16, SHAPE.window, 1e-5, False
            )
            x = x + ops.linear(heard, self.out, self.bias, W)
            x = x + ops.linear(ops.linear_swiglu(x, self.gate_up, F), self.down, None, W)
            x = x + ops.experts(x, self.router, self.many_up, self.many_down, 2, 0.0, F)
            x = ops.all_reduce(x, 1, 0.5)
        return ops.head(x[0][offsets[1:] - 1], self.table, self.first, 20)


@pytest.fixture(scope="module")
def package(ops, tmp_path_factory):
    net, T, B, P = Net(), *(torch.export.Dim(name, min=1, max=4096) for name in "TBP")
    batch = Batch.make([0, 0], [3, 5], [[0, 1], [2, 3]])
    inputs = torch.arange(8), batch.starts, batch.offsets, batch.pages, [SHAPE.cache(6) for _ in range(LAYERS)]
    dims = ({0: T}, {0: B}, {0: B + 1}, {0: B, 1: torch.export.Dim("M", min=1, max=4096)}, [{1: P}] * LAYERS)
    path = str(tmp_path_factory.mktemp("graph") / "model.pt2")
    with torch.no_grad():
        program = torch.export.export(net, inputs, dynamic_shapes=dims, strict=False)
        torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs={"cpp.simdlen": 256})
    return net, torch._C._aoti.AOTIModelPackageLoader(path, "model", False, 1, -1)


@pytest.mark.parametrize(
    "pool, batch",
    [
        (6, Batch.make([0, 0], [3, 5], [[0, 1], [2, 3]])),
        (9, Batch.make([0], [1], [[4]])),
        (40, Batch.make([0, 0, 0, 0], [70, 1, 33, 16], [[9, 1, 30, 4, 6], [2], [5, 3, 39], [8]])),
    ],
    ids=["as traced", "one token", "ragged"],
)
def test_graph_equals_eager(package, pool, batch):
    net, graph = package
    eager, compiled = ([SHAPE.cache(pool) for _ in range(LAYERS)] for _ in range(2))
    for _ in range(2):  # the second call reads what the first has written
        ids = torch.arange(int(batch.offsets[-1])) % V
        want = net(ids, batch.starts, batch.offsets, batch.pages, eager)
        got = graph.boxed_run([ids, batch.starts, batch.offsets, batch.pages, *compiled])[0]
        assert torch.equal(got, want)
        for a, b in zip(eager, compiled, strict=True):
            assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)) and a.isfinite().any()
        batch = Batch(batch.starts + batch.offsets.diff(), torch.arange(len(batch.offsets)), batch.pages)
