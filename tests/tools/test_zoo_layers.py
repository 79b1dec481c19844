"""Networks of layers that image classifiers lack: small ones compile and agree with the reference."""

from __future__ import annotations

import importlib

import graphwright
import pytest

SMALL = {
    "signals:wav2vec_stem": {"samples": 400, "width": 32},
    "signals:hifigan": {"frames": 4, "bands": 8, "width": 32},
    "signals:conformer": {"length": 12, "width": 32, "heads": 2, "kernel": 5, "depth": 1},
    "signals:conv_tasnet": {"samples": 400, "bank": 32, "narrow": 16, "wide": 32, "depth": 2},
    "signals:pointnet": {"points": 32, "classes": 5},
    "volumes:c3d": {"frames": 8, "image": 16, "width": 8, "classes": 5},
    "volumes:r3d": {"frames": 4, "image": 16, "width": 16, "classes": 5},
    "volumes:r2plus1d": {"frames": 4, "image": 16, "width": 16, "classes": 5},
    "volumes:unet3d": {"side": 8, "width": 16, "classes": 2},
    "heads:resnext": {"image": 12, "width": 64, "stages": 2},
    "heads:deeplab_head": {"side": 6, "inputs": 16, "width": 16, "classes": 5},
    "heads:segformer_head": {"side": 16, "width": 32, "classes": 7},
    "heads:retina_head": {"side": 8, "width": 32, "classes": 3, "anchors": 3, "best": 10},
    "heads:diffusion_unet": {"side": 8, "width": 32, "time": 16},
    "heads:shuffle_blocks": {"side": 6, "width": 24, "groups": 3, "depth": 1},
    "heads:transposed_decoder": {"side": 3, "width": 32, "classes": 5},
    "heads:excited_blocks": {"side": 5, "width": 48, "depth": 1},
}


def small(name: str):
    module, builder = name.split(":")
    zoo = importlib.import_module(f"graphwright.tools.zoo.{module}")
    return graphwright.trace(*getattr(zoo, builder)(**SMALL[name]))


def proven(name: str) -> None:
    executable = graphwright.compile(small(name), target="host")
    assert executable.run(executable.random_feeds())


@pytest.mark.parametrize("name", ["signals:conv_tasnet", "volumes:r2plus1d", "heads:transposed_decoder"])
def test_small_networks(name):
    proven(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_network(name):
    proven(name)
