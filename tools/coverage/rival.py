"""The same architecture, pruned in torch by Torch-Pruning: what is left, and what it computes.

It is used as it comes: what its examples add for single architectures (numbers of heads, parameters of no
layer, sizes written into a module afterwards) is not done. Its numbers are compared with the original in
which the rows and columns that it removed are zero (`rival_masks`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ...ir.errors import ToolError

if TYPE_CHECKING:
    import torch


def cover(suite: str, name: str, options: dict[str, Any], say: Any) -> None:
    """Prune all groups by magnitude at the ratio, run the result and compare it with the masked original.

    Raises:
        ToolError: outputs have other shapes afterwards.
    """
    import torch
    import torch_pruning

    from .rival_masks import RivalMasks, normalizes_channels
    from .worker import build

    say(phase="build")
    module, inputs, remark = build(suite, name)
    say(phase="prune", note=remark)
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.no_grad():
        before = _shapes(module(*inputs))
    macs_before, parameters_before = torch_pruning.utils.count_ops_and_params(module, inputs)
    masks = RivalMasks(module)
    start, aside = time.perf_counter(), 0.0
    pruner = torch_pruning.pruner.MagnitudePruner(
        module,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=options["ratio"],
        ignored_layers=_last_layers(module, inputs),
        output_transform=_sum,
    )
    for group in pruner.step(interactive=True):
        begun = time.perf_counter()
        for item in group:
            makes = pruner.DG.is_out_channel_pruning_fn(item.dep.handler)
            masks.note(item.dep.target.module, makes, [int(index) for index in item.idxs])
        aside += time.perf_counter() - begun
        group.prune()
    seconds = time.perf_counter() - start - aside
    say(phase="check", prune_seconds=seconds)
    with torch.no_grad():
        outputs = module(*inputs)
    if _shapes(outputs) != before:
        raise ToolError(f"outputs changed their shapes: {before} became {_shapes(outputs)}")
    if masks.comparable and not normalizes_channels(module):
        with torch.no_grad():
            say(difference=_difference(masks.masked(*inputs), outputs))
    macs_after, parameters_after = torch_pruning.utils.count_ops_and_params(module, inputs)
    say(
        phase="done",
        parameters=[parameters_before, parameters_after],
        macs=[int(macs_before), int(macs_after)],
    )


def _last_layers(module: torch.nn.Module, inputs: tuple[Any, ...]) -> list[torch.nn.Module]:
    """Layers that give the outputs and fix their sizes; they must be named to be left alone."""
    import torch

    layers = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    weights = {part.weight: part for part in module.modules() if isinstance(part, layers)}
    outputs = module(*inputs)
    found: list[torch.nn.Module] = []
    for tensor in _tensors(outputs):
        todo, seen = [tensor.grad_fn], set[Any]()
        while todo:
            step = todo.pop()
            if step is None or step in seen:
                continue
            seen.add(step)
            readers = [following for following, _ in step.next_functions]
            owned = [weights[leaf] for following in readers for leaf in _leaves(following) if leaf in weights]
            if owned:
                found += owned
            else:
                todo += readers
    return found


def _leaves(step: Any) -> list[Any]:
    """The parameters that a step of the tape reads, through a transpose of them."""
    if step is None:
        return []
    if hasattr(step, "variable"):
        return [step.variable]
    if type(step).__name__ in ("TBackward0", "TransposeBackward0"):
        return [leaf for following, _ in step.next_functions for leaf in _leaves(following)]
    return []


def _tensors(outputs: Any) -> list[Any]:
    import torch

    if isinstance(outputs, torch.Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [tensor for value in values for tensor in _tensors(value)]


def _shapes(outputs: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in _tensors(outputs)]


def _difference(expected: Any, found: Any) -> float:
    """Largest difference relative to the largest value of an output, as of our own results."""
    from ...ir.compare import compare

    pairs = zip(_tensors(expected), _tensors(found), strict=True)
    arrays = [(f"{index}", a.numpy(), b.numpy()) for index, (a, b) in enumerate(pairs)]
    return compare({name: a for name, a, _ in arrays}, {name: b for name, _, b in arrays}).max_rel


def _sum(outputs: Any) -> Any:
    return sum(tensor.sum() for tensor in _tensors(outputs) if tensor.is_floating_point())
