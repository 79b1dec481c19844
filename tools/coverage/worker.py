"""One architecture, in a process of its own: build, export, prune, check. Prints lines of JSON.

Run by `suites`: `python -m graphwright.tools.coverage.worker TOOL SUITE NAME OPTIONS`.
Every line is a dictionary of what has been found out so far, so that a process that is stopped has said how
far it came.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..processes import answers
from .records import RIVAL

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

Say = Callable[..., None]
"""Called with fields of `Outcome`."""

SHOWN_BARRIERS = 3
SECOND_SEED = 20
"""Of the inputs on which the saved file is compared; the proof of the pass has seen others."""


def build(suite: str, name: str) -> tuple[torch.nn.Module, tuple[Any, ...], str]:
    """A module in `eval()` with random weights, example inputs, and a remark."""
    import importlib

    import torch

    torch.manual_seed(0)
    module, inputs, remark = importlib.import_module(f".{suite}", __package__).build(name)
    rescale = suite != "torchvision" or "vit" in name or "swin" in name
    return _enliven(module.eval(), rescale=rescale), inputs, remark


def _enliven(module: torch.nn.Module, *, rescale: bool) -> torch.nn.Module:
    """Weights with which every part of a network does something.

    Freshly made networks have scales of 0 or 1e-6 and biases of 0, so that whole branches give nothing and a
    wrong result in one of them would not be seen.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            if getattr(part, "running_var", None) is not None:
                part.running_mean.uniform_(-0.2, 0.2, generator=generator)  # type: ignore[union-attr, operator]
                part.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr, operator]
        for parameter in module.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if rescale and parameter.ndim >= 2 and min(parameter.shape) > 1:
                parameter.normal_(0, 1.2 / parameter[0].numel() ** 0.5, generator=generator)
            elif parameter.ndim <= 1 or bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(torch.empty_like(parameter).uniform_(-0.1, 0.1, generator=generator))
    return module


def cover(suite: str, name: str, options: dict[str, Any], say: Say) -> None:
    """Export, prune, save, load again, compare."""
    from ...ir.load import load
    from ...ir.save import save
    from ...ir.trace import trace
    from ...passes.optimize import optimize
    from ...passes.prune_channels import PruneChannels

    say(phase="build")
    module, inputs, remark = build(suite, name)
    say(phase="export", note=remark)
    start = time.perf_counter()
    model = trace(module, inputs)
    say(
        phase="prune",
        export_seconds=time.perf_counter() - start,
        nodes=sum(1 for _ in model.graph.all_nodes()),
    )
    del module
    pruning = PruneChannels(ratio=options["ratio"], allow_statistical=options["allow_statistical"])
    with tempfile.TemporaryDirectory(prefix="graphwright-coverage-") as folder:
        before, after = Path(folder) / "before" / "m.onnx", Path(folder) / "after" / "m.onnx"
        for path in (before, after):
            path.parent.mkdir()
        save(model, before)
        shapes = {str(value.name): _shape(value) for value in model.graph.outputs}
        bytes_before = _initializer_bytes(load(before))
        masked: list[ir.Model] = []
        with _masks_kept(masked):
            result = optimize(model, pruning, reproducer=None)
        (record,) = result.report.records
        rows = record.details.get("groups", [])
        say(
            phase="check",
            prune_seconds=record.seconds,
            parameters=record.details["parameters"],
            macs=record.details["macs"],
            groups=len(rows),
            kept=len(record.left_alone),
            barriers=_barriers(record.left_alone),
            unproven=[f"{each.node}: {each.reason}" for each in record.left_alone if _unproven(each.reason)],
            proof=(record.details["proof"] or {}).get("error"),
        )
        save(result.model, after)
        pruned = load(after)
        bytes_after = _initializer_bytes(pruned)
        found = {str(value.name): _shape(value) for value in pruned.graph.outputs}
        if found != shapes:
            raise ValueError(f"outputs changed their shapes: {shapes} became {found}")
        say(bytes=[bytes_before, bytes_after])
        if rows:
            say(**_compared(load(before), masked[-1], pruned))
    say(phase="done")


def _compared(original: ir.Model, masked: ir.Model, pruned: ir.Model) -> dict[str, float]:
    """Largest relative differences: file from masked original, and masked original from the original."""
    from ...ir.compare import compare
    from ...ir.inputs import random_inputs
    from ...ir.reference import Reference

    feeds = random_inputs(original, seed=SECOND_SEED)
    expected = Reference(masked).run(feeds)
    difference = compare(expected, Reference(pruned).run(feeds)).max_rel
    return {"difference": difference, "effect": compare(Reference(original).run(feeds), expected).max_rel}


class _masks_kept:
    """While it is entered, the masked original of every removal is appended to a list."""

    def __init__(self, masked: list[ir.Model]):
        self._masked = masked

    def __enter__(self) -> None:
        from ...passes import prune_channels
        from ...passes.channels import masked_model

        self._apply = apply = prune_channels.apply_removal

        def watched(model: ir.Model, removal: Any, rewriter: Any) -> None:
            self._masked.append(masked_model(model, removal))
            apply(model, removal, rewriter)

        prune_channels.apply_removal = watched

    def __exit__(self, *_: object) -> None:
        from ...passes import prune_channels

        prune_channels.apply_removal = self._apply


def _barriers(left: list[Any]) -> list[str]:
    """The commonest reasons for what was kept, those of graph outputs last."""
    reasons = Counter(f"{each.op_type}: {each.reason.split('; keeps')[0]}" for each in left)
    ordered = sorted(reasons.items(), key=lambda item: ("graph output" in item[0], -item[1]))
    return [f"{text} ({count}x)" if count > 1 else text for text, count in ordered[:SHOWN_BARRIERS]]


def _unproven(reason: str) -> bool:
    return reason.startswith("the proof failed")


def _shape(value: ir.Value) -> list[int | str | None] | None:
    if value.shape is None:
        return None
    return [dim if isinstance(dim, int) else str(dim) for dim in value.shape]


def _initializer_bytes(model: ir.Model) -> int:
    from ...ir.bodies import all_graphs

    return sum(
        value.const_value.nbytes
        for graph in all_graphs(model)
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def main(tool: str, suite: str, name: str, options: dict[str, Any], say: Say) -> None:
    """Run one tool on one architecture; whatever goes wrong is said."""
    limit = int(options["memory_gib"] * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        if tool == RIVAL:
            from .rival import cover as cover_by_rival

            cover_by_rival(suite, name, options, say)
        else:
            cover(suite, name, options, say)
    except Exception as error:
        if os.environ.get("GRAPHWRIGHT_DEBUG"):
            import traceback

            traceback.print_exc()
        say(cause=_cause(error))


def _cause(error: Exception) -> str:
    """One line; a message that lists hundreds of symbols is cut."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "bad_alloc" in str(error):
        return "out of memory"
    text = " ".join(str(error).split())
    text = text if len(text) <= 240 else f"{text[:240]}..."
    from ...ir.errors import GraphwrightError

    return text if isinstance(error, GraphwrightError) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    with answers() as channel:

        def tell(**fields: Any) -> None:
            """Print one line."""
            print(json.dumps(fields), file=channel, flush=True)

        main(sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), tell)
