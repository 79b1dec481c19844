"""Random parameters under which signals stay alive, and batch norms with statistics worth folding."""

from __future__ import annotations

import math

import torch
from torch import nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def randomize(module: nn.Module, example: tuple[torch.Tensor, ...], *, seed: int = 0) -> nn.Module:
    """Give `module` seeded random weights and batch-norm statistics, and put it into evaluation mode.

    Weights of convolutions and linear layers are normal with variance 2 / fan-in, biases and the affine part
    of normalizations are drawn around their neutral values. Batch-norm statistics are those of one forward
    pass over random data, perturbed, so that activations keep unit scale while the folded weights differ from
    the originals.

    Args:
        module: changed in place and returned.
        example: inputs of the forward pass; floating-point tensors are replaced by normal noise.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in module.modules() if isinstance(m, _BATCH_NORMS)]
    with torch.no_grad():
        for child in module.modules():
            _randomize_parameters(child, generator)
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        noise = tuple(
            torch.randn((4, *x.shape[1:]), generator=generator)
            if x.is_floating_point()
            else x[:1].expand(4, *x.shape[1:])
            for x in example
        )
        if norms:
            module(*noise)
        for norm in norms:
            _perturb_statistics(norm, generator)
    return module.eval().requires_grad_(False)


def finished(
    module: nn.Module, *shape: int, more: tuple[torch.Tensor, ...] = ()
) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """A randomized module and its example inputs: seeded normal noise of `shape`, then `more`."""
    example = (torch.randn(*shape, generator=torch.Generator().manual_seed(1)), *more)
    return randomize(module, example), example


def _randomize_parameters(child: nn.Module, generator: torch.Generator) -> None:
    if isinstance(child, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):
        fan_in = child.weight[0].numel()
        if isinstance(child, _TRANSPOSED):
            fan_in = child.weight[:, 0].numel() // math.prod(child.stride)
        child.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
        if child.bias is not None:
            child.bias.normal_(0.0, 0.1, generator=generator)
    if isinstance(child, (*_BATCH_NORMS, nn.LayerNorm)):
        child.weight.uniform_(0.7, 1.3, generator=generator)
        child.bias.normal_(0.0, 0.2, generator=generator)
    if isinstance(child, nn.Embedding):
        child.weight.normal_(0.0, 1.0, generator=generator)


def _perturb_statistics(norm: nn.modules.batchnorm._BatchNorm, generator: torch.Generator) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    deviation = norm.running_var.sqrt()
    norm.running_mean += 0.2 * deviation * torch.randn(norm.num_features, generator=generator)
    norm.running_var *= 0.7 + 0.8 * torch.rand(norm.num_features, generator=generator)
    norm.momentum = 0.1
