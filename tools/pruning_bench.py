"""Accuracy after pruning, by criterion, budget and recovery, on two networks trained on scanned digits.

`python -m graphwright.tools.pruning_bench` (or `make bench-pruning`) trains a residual CNN and a small vision
transformer on scikit-learn's digits (once; they are kept in a folder), prunes each to 70, 50 and 30 % of its
MACs by every criterion, with and without reconstruction from training images, and prints the accuracy on
images that neither training nor pruning has seen. Nothing is trained afterwards.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ..ir.errors import GraphwrightError, PassError
from .console import print_line, progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from .digits import Digits

BATCH = 50
"""Images per run: divides the test images evenly."""
CALIBRATION_BATCHES = 10
BUDGETS = (0.7, 0.5, 0.3)
CRITERIA = ("l1", "l2", "fpgm", "bn-scale", "apoz", "activation", "wanda", "random")
RANKINGS = ("local", "global", "isomorphic")
RANDOM_SEEDS = (0, 1, 2)
NETWORKS = {"cnn": "Residual CNN", "vit": "Vision transformer"}


@dataclass(frozen=True)
class Cell:
    """Accuracy after one pruning, 0 to 1, and the share of MACs that is left."""

    accuracy: float
    macs: float


@dataclass(frozen=True)
class Subject:
    """A trained network, its data, and what it scores unpruned."""

    model: ir.Model
    calibration: list[dict[str, np.ndarray]]
    accuracy: Callable[[ir.Model], float]


def main(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the tables to this Markdown file.")
    ] = None,
    folder: Annotated[
        Path, typer.Option("--folder", help="Where the trained networks are kept between runs.")
    ] = Path("demo-out"),
    networks: Annotated[str, typer.Option("--networks", help="cnn, vit or both.")] = "cnn,vit",
    criteria: Annotated[str, typer.Option("--criteria", help="Criteria, separated by commas.")] = ",".join(
        CRITERIA
    ),
) -> None:
    """Train, prune by every criterion, and print the accuracies."""
    start = time.perf_counter()
    names = [name.strip() for name in networks.split(",")]
    try:
        unknown = [name for name in names if name not in NETWORKS]
        if unknown:
            raise PassError(f"--networks knows {', '.join(NETWORKS)}, not {unknown[0]!r}")
        folder.mkdir(parents=True, exist_ok=True)
        parts = [tables(name, folder, [each.strip() for each in criteria.split(",")]) for name in names]
    except (GraphwrightError, OSError) as error:
        print(f"pruning-bench: error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    text = "\n\n".join(parts) + "\n"
    print_line(text)
    print_line(f"{time.perf_counter() - start:.0f} s in all")
    if output is not None:
        output.write_text(text, encoding="utf-8")


def tables(name: str, folder: Path, criteria: list[str]) -> str:
    """The tables of one network as Markdown."""
    subject = load_subject(name, folder)
    before = subject.accuracy(subject.model)
    heads = [f"{share:.0%} MACs" for share in BUDGETS]
    head = ["criterion", *(part for each in heads for part in (each, "reconstructed"))]
    rows = []
    for criterion in criteria:
        row = [criterion]
        for budget in BUDGETS:
            for recover in ("none", "weights"):
                with progress(f"{name}: {criterion}, macs={budget}, recover={recover}"):
                    row.append(_text(prune(subject, criterion, budget, recover)))
        rows.append(row)
    title = f"{NETWORKS[name]}, {before:.2%} before pruning; per group (`ranking=local`):"
    ranked = []
    for ranking in RANKINGS:
        row = [ranking]
        for budget in BUDGETS:
            for recover in ("none", "weights"):
                with progress(f"{name}: ranking {ranking}, macs={budget}, recover={recover}"):
                    row.append(_text(prune(subject, "wanda", budget, recover, ranking)))
        ranked.append(row)
    second = f"{NETWORKS[name]}, `importance=wanda`, by ranking:"
    return "\n\n".join([title, _markdown(head, rows), second, _markdown(["ranking", *head[1:]], ranked)])


def prune(
    subject: Subject, criterion: str, budget: float, recover: str, ranking: str = "local"
) -> Cell | None:
    """Prune to a budget of MACs; None where the criterion does not apply. Chance is averaged over seeds."""
    from ..passes.optimize import optimize

    options = f"importance={criterion} macs={budget} recover={recover} ranking={ranking}"
    accuracies, shares = [], []
    for seed in RANDOM_SEEDS if criterion == "random" else (0,):
        try:
            result = optimize(
                subject.model, f"prune-channels{{{options}}}", calibration=subject.calibration, seed=seed
            )
        except PassError as error:
            if "reads the scales" in str(error):
                return None
            raise
        before, after = result.report.records[0].details["macs"]
        shares.append(after / before)
        accuracies.append(subject.accuracy(result.model))
    return Cell(float(np.mean(accuracies)), float(np.mean(shares)))


def load_subject(name: str, folder: Path) -> Subject:
    """The trained network called `name`, from the folder or trained now."""
    from ..ir.reference import Reference
    from ..passes.optimize import optimize
    from .digits import load_digits

    data = load_digits()
    model = optimize(trained_file(name, folder), "simplify").model
    key = str(model.graph.inputs[0].name)
    calibration = [
        {key: data.train_images[start : start + BATCH]}
        for start in range(0, BATCH * CALIBRATION_BATCHES, BATCH)
    ]

    def accuracy(candidate: ir.Model) -> float:
        reference = Reference(candidate)
        right = 0
        for start in range(0, len(data.test_images), BATCH):
            (logits,) = reference.run({key: data.test_images[start : start + BATCH]}).values()
            right += int((logits.argmax(1) == data.test_labels[start : start + BATCH]).sum())
        return right / len(data.test_images)

    return Subject(model, calibration, accuracy)


def trained_file(name: str, folder: Path) -> ir.Model:
    """The trained network called `name` as it was traced: initializers have their torch names."""
    from ..ir.load import load
    from ..ir.save import save
    from .digits import load_digits

    file = folder / f"digits-{name}.onnx"
    if not file.is_file():
        with progress(f"training {name}, once") as say:
            model = _trained(name, load_digits(), say)
        save(model, file)
    return load(file)


def _trained(name: str, data: Digits, say: Any) -> ir.Model:
    import torch

    from ..ir.trace import trace
    from .digits import train
    from .digits_vit import train_vit

    def on_epoch(done: int, total: int) -> None:
        if done % 5 == 0:
            say(f"training {name}, epoch {done} of {total}")

    # No channels are decayed ahead: the criteria are to find out by themselves which ones matter.
    module: Any
    module = (
        train(data, ratio=0.0, on_epoch=on_epoch) if name == "cnn" else train_vit(data, on_epoch=on_epoch)
    )
    return trace(module, (torch.from_numpy(data.test_images[:BATCH]),), name=f"digits-{name}")


def _text(cell: Cell | None) -> str:
    return "-" if cell is None else f"{cell.accuracy:.1%}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))


if __name__ == "__main__":
    typer.run(main)
