"""Zeros in a copy of a module give what slicing by hand gives, whatever the layers are."""

from __future__ import annotations

import torch
from graphwright.tools.coverage.rival_masks import RivalMasks, normalizes_channels
from torch import nn


def networks(middle_in, middle_out, *, groups=1, transposed=False):
    made = nn.ConvTranspose2d if transposed else nn.Conv2d
    return nn.Sequential(
        nn.Conv2d(3, middle_in, 3),
        nn.BatchNorm2d(middle_in),
        nn.ReLU(),
        made(middle_in, middle_out, 3, groups=groups),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(middle_out, 4),
    ).eval()


def randomize(net):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.1)
    return net


def assert_equal(masks, sliced):
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(masks.masked(x), sliced(x), rtol=1e-4, atol=1e-4)


def copied(source, target, slices):
    """Copy the state of a network, cut along given axes."""
    state = source.state_dict()
    for name, value in state.items():
        for axis, kept in slices.get(name, {}).items():
            value = value.index_select(axis, torch.tensor(kept))
        state[name] = value
    target.load_state_dict(state)
    return target


def test_rows_norms_and_columns():
    net = randomize(networks(8, 6))
    masks = RivalMasks(net)
    first, norm, second, last = net[0], net[1], net[3], net[7]
    # In two steps: the second numbers what the first left.
    for indices in ([1, 4], [0, 5]):
        masks.note(first, True, indices)
        masks.note(norm, True, indices)
        masks.note(second, False, indices)
    masks.note(second, True, [2])
    masks.note(last, False, [2])
    kept, rest = [2, 3, 5, 6], [0, 1, 3, 4, 5]
    channels = {f"1.{n}": {0: kept} for n in ("weight", "bias", "running_mean", "running_var")}
    cut = {
        "0.weight": {0: kept},
        "0.bias": {0: kept},
        **channels,
        "3.weight": {0: rest, 1: kept},
        "3.bias": {0: rest},
        "7.weight": {1: rest},
    }
    assert masks.comparable
    assert_equal(masks, copied(net, networks(4, 5), cut))


def test_grouped_and_transposed_convolutions():
    for transposed in (False, True):
        net = randomize(networks(8, 6, groups=2, transposed=transposed))
        masks = RivalMasks(net)
        gone = [1, 5]
        masks.note(net[0], True, gone)
        masks.note(net[1], True, gone)
        masks.note(net[3], False, gone)
        masks.note(net[3], True, [0, 3])
        masks.note(net[7], False, [0, 3])
        kept, rest = [0, 2, 3, 4, 6, 7], [1, 2, 4, 5]
        weight = {0: kept, 1: [1, 2]} if transposed else {0: rest, 1: [0, 2, 3]}
        cut = {
            "0.weight": {0: kept},
            "0.bias": {0: kept},
            **{f"1.{n}": {0: kept} for n in ("weight", "bias", "running_mean", "running_var")},
            "3.weight": weight,
            "3.bias": {0: rest},
            "7.weight": {1: rest},
        }
        assert_equal(masks, copied(net, networks(6, 4, groups=2, transposed=transposed), cut))


def test_what_cannot_be_compared():
    class ScaleNorm(nn.Module):
        pass

    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    masks = RivalMasks(net)
    masks.note(net[0], True, [1])
    masks.note(nn.Parameter(torch.ones(6)), True, [1])
    assert masks.comparable
    masks.note(net[1], True, [1])
    assert not masks.comparable
    assert not normalizes_channels(net)
    assert normalizes_channels(nn.Sequential(ScaleNorm()))
