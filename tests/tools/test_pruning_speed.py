"""The table of pruning times: the networks it measures, and what it says of them."""

from __future__ import annotations

import importlib.util

import pytest
from graphwright.passes.channels import analyse, find_groups
from graphwright.passes.optimize import optimize
from graphwright.tools.pruning_speed import build_residual, measure_pruning, measure_torch_pruning


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
