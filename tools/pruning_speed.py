"""How long dependency analysis and pruning take: ResNet-50 and deep graphs, Torch-Pruning beside them.

`python -m graphwright.tools.pruning_speed` prints seconds of processor time (run it on one core) for the
analysis and for `prune-channels{ratio=0.5}` without and with its proof. Torch-Pruning's time, where it is
installed, is that of building its dependency graph and pruning half of every group of the torch module, where
we prune the traced graph.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import onnx_ir as ir
import typer

from ..ir.errors import ToolError
from ..ir.shapes import infer_shapes
from ..passes.channels import analyse
from ..passes.optimize import optimize
from .console import print_table

SIZES = (3000, 6000, 12000)
_BLOCK = 6
"""Nodes of one residual block."""


@dataclass(frozen=True)
class PruningTime:
    """Seconds of processor time that one model takes.

    Attributes:
        model: Its name.
        nodes: Its nodes.
        analysis: Dependency analysis alone.
        pruning: `prune-channels{ratio=0.5}` without proof, everything that `optimize` does included.
        proven: The same with proof.
        torch_pruning: Torch-Pruning on the same network, or None where it cannot be measured.
    """

    model: str
    nodes: int
    analysis: float
    pruning: float
    proven: float
    torch_pruning: float | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dictionary."""
        return dict(vars(self))


def build_residual(nodes: int, width: int = 8) -> ir.Model:
    """A residual network of about `nodes` nodes on tiny tensors; two groups in three layers may be pruned."""
    generator = np.random.default_rng(0)
    stored: list[ir.Value] = []

    def weight(name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array.astype(np.float32), name=name)
        kind = ir.TensorType(ir.DataType.FLOAT)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor)
        stored.append(value)
        return value

    def filters(name: str, inputs: int, window: int = 3) -> ir.Value:
        shape = (width, inputs, window, window)
        return weight(name, generator.standard_normal(shape) / np.sqrt(inputs * window * window))

    image = ir.Value(name="image", shape=ir.Shape([1, 3, 8, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    made: list[ir.Node] = []

    def add(operator: str, inputs: list[ir.Value], **attributes: Any) -> ir.Value:
        made.append(ir.node(operator, inputs, attributes, name=f"{operator}_{len(made)}"))
        made[-1].outputs[0].name = f"value_{len(made)}"
        return made[-1].outputs[0]

    stream = add("Conv", [image, filters("stem", 3)], pads=[1, 1, 1, 1])
    for block in range(max(1, (nodes - 4) // _BLOCK)):
        inner = add("Conv", [stream, filters(f"{block}.in", width)], pads=[1, 1, 1, 1])
        norm = [weight(f"{block}.{name}", np.ones(width)) for name in ("scale", "bias", "mean", "variance")]
        inner = add("Relu", [add("BatchNormalization", [inner, *norm])])
        inner = add("Conv", [inner, filters(f"{block}.out", width)], pads=[1, 1, 1, 1])
        stream = add("Relu", [add("Add", [inner, stream])])
    pooled = add("Flatten", [add("GlobalAveragePool", [stream])])
    answer = add("MatMul", [pooled, weight("head", generator.standard_normal((width, 10)))])
    answer.shape, answer.type = ir.Shape([1, 10]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [image], [answer], nodes=made, initializers=stored, opset_imports={"": 23}, name="residual"
    )
    model = ir.Model(graph, ir_version=10)
    infer_shapes(model)
    return model


def build_residual_module(nodes: int, width: int = 8) -> Any:
    """The torch module of the network that `build_residual` builds."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(width)
            self.last = nn.Conv2d(width, width, 3, padding=1, bias=False)

        def forward(self, stream: Any) -> Any:
            return torch.relu(self.last(torch.relu(self.norm(self.first(stream)))) + stream)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
            self.blocks = nn.Sequential(*(Block() for _ in range(max(1, (nodes - 4) // _BLOCK))))
            self.head = nn.Linear(width, 10, bias=False)

        def forward(self, image: Any) -> Any:
            return self.head(self.blocks(self.stem(image)).mean((2, 3)))

    return Residual().eval()


def measure_pruning(name: str, model: ir.Model, repeat: int = 3) -> PruningTime:
    """Time the analysis and both ways to prune; the least of `repeat` runs.

    Args:
        name: What the row is called.
        model: At the canonical opset; not changed.
        repeat: How often.
    """
    prepared = optimize(model, "fold-constants").model
    times = [
        min(_seconds(work) for _ in range(repeat))
        for work in (
            lambda: analyse(prepared),
            lambda: optimize(model, "prune-channels{ratio=0.5 proof=false}"),
            lambda: optimize(model, "prune-channels{ratio=0.5}"),
        )
    ]
    return PruningTime(name, len(model.graph), *times)


def measure_torch_pruning(build: Callable[[], Any], inputs: tuple[Any, ...], repeat: int = 3) -> float | None:
    """Seconds of Torch-Pruning on a fresh module of `build`; None where it is not installed."""
    if importlib.util.find_spec("torch_pruning") is None:
        return None
    import torch
    import torch_pruning

    def prune(module: Any) -> None:
        importance = torch_pruning.importance.MagnitudeImportance(p=1)
        linear = [each for each in module.modules() if isinstance(each, torch.nn.Linear)]
        torch_pruning.pruner.MetaPruner(
            module, inputs, importance, pruning_ratio=0.5, ignored_layers=linear[-1:]
        ).step()

    modules = [build() for _ in range(repeat)]
    before = _parameters(modules[0])
    for module in modules:
        # It follows gradients; without them it finds nothing to prune.
        module.requires_grad_(True)
    least = min(_seconds(lambda module=module: prune(module)) for module in modules)  # type: ignore[misc]
    if _parameters(modules[0]) == before:
        raise ToolError("Torch-Pruning pruned nothing, so its time says nothing")
    return least


def _parameters(module: Any) -> int:
    return sum(each.numel() for each in module.parameters())


def _seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure_all(repeat: int) -> Iterator[PruningTime]:
    """ResNet-50, then residual networks of growing size."""
    import torch

    from ..ir.trace import trace
    from .zoo import resnet50

    module, inputs = resnet50()
    ours = measure_pruning("ResNet-50", trace(module, inputs), repeat)
    rival = measure_torch_pruning(lambda: resnet50()[0], inputs, repeat)
    yield replace(ours, torch_pruning=rival)
    for nodes in SIZES:
        ours = measure_pruning(f"residual, {nodes} nodes", build_residual(nodes), repeat)
        build = functools.partial(build_residual_module, nodes)
        # It takes minutes for the largest, where noise does not matter: once is enough.
        rival = measure_torch_pruning(build, (torch.zeros(1, 3, 8, 8),), 1)
        yield replace(ours, torch_pruning=rival)


def main(repeat: Annotated[int, typer.Option(help="Runs per figure; the least counts.")] = 3) -> None:
    """Print the table."""
    rows = []
    for found in measure_all(repeat):
        rival = "-" if found.torch_pruning is None else f"{found.torch_pruning:.2f}"
        figures = (found.analysis, found.pruning, found.proven)
        rows.append([found.model, str(found.nodes), *(f"{each:.2f}" for each in figures), rival])
    print_table(
        "seconds of one core",
        ["model", "nodes", "analysis", "pruned", "pruned and proven", "Torch-Pruning"],
        rows,
    )


if __name__ == "__main__":
    # Threads would add up in the time of the process.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.run(main)
