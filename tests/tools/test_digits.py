from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from graphwright.tools.digits import DigitsNet, load_digits, train


@pytest.fixture(scope="module")
def data():
    return load_digits()


def accuracy(model: DigitsNet, data) -> float:
    with torch.no_grad():
        predicted = model(torch.from_numpy(data.test_images)).argmax(1).numpy()
    return float((predicted == data.test_labels).mean())


def test_the_split_is_stratified_disjoint_and_fixed(data):
    again = load_digits()
    np.testing.assert_array_equal(data.test_images, again.test_images)
    assert len(data.train_images) + len(data.test_images) == 1797
    assert data.train_images.shape[1:] == (1, 8, 8) and data.train_images.dtype == np.float32
    assert (data.train_images.min(), data.train_images.max()) == (0, 1)
    counts = np.bincount(data.test_labels)
    assert counts.min() >= 43 and counts.max() <= 46


def test_the_network_has_what_the_passes_are_to_meet():
    model = DigitsNet()
    kinds = [type(child).__name__ for child in model.modules()]
    assert kinds.count("BatchNorm2d") == 7 and kinds.count("Linear") == 1
    assert any(isinstance(c, torch.nn.Conv2d) and c.groups == c.in_channels > 1 for c in model.modules())


def test_channel_groups_cover_every_batch_norm_once():
    model = DigitsNet()
    grouped = [norm for group in model.channel_groups() for norm in group]
    assert len(grouped) == len(set(grouped)) == 7
    assert all(len({norm.num_features for norm in group}) == 1 for group in model.channel_groups())


def test_training_learns_and_frees_half_of_the_channels(data):
    epochs: list[int] = []
    model = train(data, epochs=6, on_epoch=lambda done, total: epochs.append(done))
    assert epochs == [1, 2, 3, 4, 5, 6]
    assert accuracy(model, data) > 0.9
    silenced = copy.deepcopy(model)
    for group in silenced.channel_groups():
        strength = torch.stack([norm.weight.abs() for norm in group]).sum(0)
        weak = strength.argsort()[: len(strength) // 2]
        for norm in group:
            norm.weight[weak] = 0
            norm.bias[weak] = 0
    assert accuracy(silenced, data) > accuracy(model, data) - 0.02
