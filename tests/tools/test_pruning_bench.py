"""The pruning table: what stands in its cells is the accuracy of what was pruned to the budget."""

from __future__ import annotations

import pytest
from graphwright.ir.account import account
from graphwright.tools import digits, digits_vit, pruning_bench


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Networks after two epochs, kept where the bench looks for them."""
    where = tmp_path_factory.mktemp("networks")
    trained = {"train": digits.train, "train_vit": digits_vit.train_vit}
    patch = pytest.MonkeyPatch()
    patch.setattr(digits, "train", lambda data, **options: trained["train"](data, **{**options, "epochs": 2}))
    patch.setattr(
        digits_vit,
        "train_vit",
        lambda data, **options: trained["train_vit"](data, **{**options, "epochs": 2}),
    )
    try:
        for name in pruning_bench.NETWORKS:
            pruning_bench.load_subject(name, where)
    finally:
        patch.undo()
    return where


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_cells_are_measured_on_models_that_meet_the_budget(folder, name):
    subject = pruning_bench.load_subject(name, folder)
    assert subject.accuracy(subject.model) > 0.05
    assert len(subject.calibration) == pruning_bench.CALIBRATION_BATCHES
    plain = pruning_bench.prune(subject, "wanda", 0.5, "none")
    fitted = pruning_bench.prune(subject, "wanda", 0.5, "weights")
    assert 0.45 < plain.macs <= 0.5 and plain.macs == fitted.macs
    assert fitted.accuracy > plain.accuracy - 0.02
    # No normalization scales what can be pruned of the transformer without changing statistics.
    assert (pruning_bench.prune(subject, "bn-scale", 0.5, "none") is None) == (name == "vit")


def test_table_is_markdown(folder, monkeypatch):
    monkeypatch.setattr(pruning_bench, "BUDGETS", (0.6,))
    monkeypatch.setattr(pruning_bench, "RANKINGS", ("local",))
    text = pruning_bench.tables("cnn", folder, ["l1"])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| criterion | 60% MACs | reconstructed |"
    assert lines[2].startswith("| l1 | ") and lines[2].count("%") == 2
    assert len(lines) == 6


def test_the_transformer_is_what_it_says(folder):
    model = pruning_bench.load_subject("vit", folder).model
    tokens, width, depth = 16, 48, 3
    per_layer = tokens * width * width * (3 + 1 + 3 + 3) + 2 * tokens * tokens * width
    expected = tokens * 4 * width + depth * per_layer + width * 10
    assert account(model).macs == pruning_bench.BATCH * expected
