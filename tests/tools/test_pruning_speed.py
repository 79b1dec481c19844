"""The table of pruning times: the networks it measures, and what it says of them."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from graphwright.ir.account import account
from graphwright.ir.trace import trace
from graphwright.passes.channels import analyse, find_groups
from graphwright.passes.optimize import optimize
from graphwright.tools.pruning_speed import (
    build_residual,
    build_residual_module,
    measure_pruning,
    measure_torch_pruning,
)


def test_the_residual_network_has_channels_to_prune_in_every_block():
    model = build_residual(64)
    assert abs(len(model.graph) - 64) <= 6
    blocks = sum(node.op_type == "Add" for node in model.graph)
    assert len(find_groups(analyse(model))) == blocks + 1
    record = optimize(model, "prune-channels{ratio=0.5}").report.records[0]
    assert record.statistics["groups pruned"] == blocks + 1
    assert record.details["proof"]["error"] <= 1e-4


def test_a_row_holds_times_and_leaves_the_model_alone():
    model = build_residual(30)
    before = [node.name for node in model.graph]
    found = measure_pruning("small", model, repeat=1)
    assert 0.0 < found.analysis < found.proven
    assert found.nodes == len(model.graph)
    assert [node.name for node in model.graph] == before


def test_without_torch_pruning_there_is_no_figure_of_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert measure_torch_pruning(lambda: pytest.fail("nothing is to be built"), ()) is None


def test_the_module_for_torch_pruning_is_the_same_network():
    traced = optimize(trace(build_residual_module(28), (torch.zeros(1, 3, 8, 8),)), "simplify").model
    ours = optimize(build_residual(28), "simplify").model
    operators = [
        sorted(node.op_type for node in model.graph if node.op_type != "Flatten") for model in (traced, ours)
    ]
    products = [
        [each for each in names if each in ("Conv", "Add", "BatchNormalization")] for names in operators
    ]
    assert products[0] == products[1] and products[0].count("Conv") == 9
    assert account(traced).macs == account(ours).macs
