"""Inferred shapes against the shapes that values really have when a model runs."""

import numpy as np
import onnx_ir as ir
import pytest
from graphwright.ir.account import account
from graphwright.ir.clone import clone
from graphwright.ir.load import load
from graphwright.ir.reference import Reference
from graphwright.ir.shapes import bind_dims, infer_shapes, require_static
from graphwright.ir.trace import trace
from graphwright.ir.verify import problems
from graphwright.tools.zoo.light import light_path


def evaluated(shape: ir.Shape | None, sizes: dict[str, int]) -> tuple[int, ...] | None:
    if shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.evaluate(sizes) for dim in shape)


def wrong_shapes(model: ir.Model, sizes: dict[str, int]) -> list[str]:
    """Values whose inferred shape is not the one they have in a run with inputs of `sizes`."""
    generator = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.inputs:
        shape = evaluated(value.shape, sizes)
        if value.dtype.is_integer():
            feeds[value.name] = generator.integers(0, 20, shape).astype(value.dtype.numpy())
        else:
            feeds[value.name] = generator.standard_normal(shape).astype(value.dtype.numpy())
    tensors = [v for n in model.graph for v in n.outputs if v.name and type(v.type) is ir.TensorType]
    found = Reference(model).run_values(feeds, [v.name for v in tensors])
    assert len(found) == len({v.name for v in tensors})
    return [
        f"{v.name}: inferred {v.shape}, is {found[v.name].shape}"
        for v in tensors
        if evaluated(v.shape, sizes) != found[v.name].shape
    ]


def check(model: ir.Model, *sizes: dict[str, int]) -> None:
    assert problems(model) == []
    infer_shapes(model)
    for case in sizes:
        assert wrong_shapes(model, case) == []
        bound = clone(model)
        bind_dims(bound, case)
        require_static(bound)
        assert wrong_shapes(bound, {}) == []
        assert account(bound).macs == evaluated_formula(account(model), case)


def evaluated_formula(cost, sizes: dict[str, int]) -> int:
    return cost.macs if cost.macs is not None else ir.SymbolicDim(cost.formula).evaluate(sizes)


@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet"])
def test_light_models(name):
    check(load(light_path(name)), {})


def test_transformer_with_dynamic_batch_and_length():
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width: int, heads: int):
            super().__init__()
            self.heads = heads
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

        def forward(self, x):
            batch, length, width = x.shape
            parts = self.qkv(self.first(x)).chunk(3, -1)
            q, k, v = (p.view(batch, length, self.heads, width // self.heads).transpose(1, 2) for p in parts)
            mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
            return x + self.mlp(self.second(x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.block, self.head = nn.Embedding(20, 16), Block(16, 4), nn.Linear(16, 3)
            self.token = nn.Parameter(torch.randn(1, 1, 16))
            self.position = nn.Parameter(torch.randn(1, 32, 16))

        def forward(self, ids):
            x = self.embed(ids) + self.position[:, : ids.shape[1]]
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
            return self.head(self.block(x).mean(1))

    module = Model().eval()
    model = trace(module, (torch.randint(0, 20, (2, 12)),), dynamic_shapes={"ids": {0: "batch", 1: "length"}})
    check(model, {"batch": 1, "length": 3}, {"batch": 3, "length": 7})
    assert account(model).parameters == sum(p.numel() for p in module.parameters())


@pytest.mark.slow
def test_recurrent_net_with_dynamic_batch():
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 16, 2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    module = Model().eval()
    model = trace(module, (torch.randn(3, 5, 8),), dynamic_shapes={"x": {0: "batch"}})
    check(model, {"batch": 1}, {"batch": 4})
    assert account(model).parameters == sum(p.numel() for p in module.parameters())
