"""What Torch-Pruning's numbers must be: the original with zeros where it takes channels away.

Every group that it prunes names layers and indices. In a copy of the original those rows (of layers that make
channels, with their bias and batch norm) and those columns (of layers that read them) become zero; nothing is
sliced. Where it prunes a normalization over channels the result has other statistics, so there is nothing to
compare with.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


class RivalMasks:
    """A copy of a module that is masked step by step.

    Attributes:
        masked: The copy.
        comparable: Whether pruned and masked module should give the same.
    """

    def __init__(self, module: torch.nn.Module):
        self.masked = copy.deepcopy(module)
        self.comparable = True
        self._names = {part: name for name, part in module.named_modules()}
        self._parts = dict(self.masked.named_modules())
        self._left: dict[tuple[str, bool], np.ndarray] = {}

    def note(self, layer: Any, makes: bool, indices: list[int]) -> None:
        """Mask a layer before it is pruned.

        Args:
            layer: A module, or a parameter of its own, which needs no mask: what reads it has one.
            makes: Whether channels go that it makes; else those that it reads.
            indices: Which, as they are numbered by now.
        """
        import torch

        name = self._names.get(layer) if isinstance(layer, torch.nn.Module) else None
        if name is None:
            return
        part = self._parts[name]
        if isinstance(part, torch.nn.modules.conv._ConvNd):
            if part.groups > 1 and part.groups == part.out_channels:
                makes = True
            size = part.out_channels if makes else part.in_channels
            gone = self._original(name, makes, size, indices)
            with torch.no_grad():
                _clear_conv(part, makes, gone)
        elif isinstance(part, torch.nn.Linear):
            gone = self._original(name, makes, part.out_features if makes else part.in_features, indices)
            with torch.no_grad():
                if makes:
                    _clear(part, gone)
                else:
                    part.weight[:, gone] = 0.0
        elif isinstance(
            part, (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.instancenorm._InstanceNorm)
        ):
            if part.weight is not None:
                gone = self._original(name, True, part.num_features, indices)
                with torch.no_grad():
                    _clear(part, gone)
        elif not isinstance(part, (torch.nn.PReLU, torch.nn.Embedding)):
            # Normalizations over channels, attention and recurrent layers in one piece.
            self.comparable = False

    def _original(self, name: str, makes: bool, size: int, indices: list[int]) -> list[int]:
        """The numbers that indices had at first."""
        left = self._left.get((name, makes), np.arange(size))
        self._left[name, makes] = np.delete(left, indices)
        return [int(index) for index in left[indices]]


def _clear(part: Any, gone: list[int]) -> None:
    part.weight[gone] = 0.0
    if part.bias is not None:
        part.bias[gone] = 0.0


def _clear_conv(part: Any, makes: bool, gone: list[int]) -> None:
    if makes and not part.transposed:
        _clear(part, gone)
        return
    if makes:
        per_group = part.out_channels // part.groups
        rows = part.in_channels // part.groups
        for index in gone:
            group, place = divmod(index, per_group)
            part.weight[group * rows : (group + 1) * rows, place] = 0.0
        if part.bias is not None:
            part.bias[gone] = 0.0
        return
    if part.transposed:
        part.weight[gone] = 0.0
        return
    columns, rows = part.in_channels // part.groups, part.out_channels // part.groups
    for index in gone:
        group, place = divmod(index, columns)
        part.weight[group * rows : (group + 1) * rows, place] = 0.0


def normalizes_channels(module: torch.nn.Module) -> bool:
    """Whether a part is a normalization of its own making, of which nothing is known."""
    import torch

    known = (
        torch.nn.modules.batchnorm._NormBase,
        torch.nn.LayerNorm,
        torch.nn.GroupNorm,
        torch.nn.LocalResponseNorm,
    )
    leaves = (part for part in module.modules() if not any(part.children()))
    return any("norm" in type(part).__name__.lower() and not isinstance(part, known) for part in leaves)
