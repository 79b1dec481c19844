"""`make demo`: train a small CNN on real scans, make it smaller step by step, compile and measure every step.

Then the same road for a network out of a file: the ResNet-50 that ships inside the `onnx` package.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..ir.errors import GraphwrightError
from .console import human_bytes, plain, print_line, progress
from .measure import measure_interleaved
from .steps import StepTable, measured_step

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..backends.executable import Executable
    from ..passes.manager import PassRecord
    from .digits import Digits

STAGES = (
    "simplify",
    "fold-batch-norm",
    "prune-channels{ratio=0.5}",
    "insert-qdq",
)
CALIBRATION_IMAGES = 128
RESNET = "light_resnet50"


@dataclass
class Stage:
    """One step of the demo: what ran, the graph after it, and that graph compiled for this CPU.

    The original is not compiled: it runs on the reference, as it came.
    """

    name: str
    model: ir.Model
    executable: Executable | None = None
    records: list[PassRecord] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        arguments: the command line; the process's own where None.

    Returns:
        The exit code, as for `graphwright`.
    """
    parser = argparse.ArgumentParser(prog="python -m graphwright.tools.demo", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo-out"), help="folder for artifacts")
    parser.add_argument("--epochs", type=int, default=24, help="training epochs")
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        given.output.mkdir(parents=True, exist_ok=True)
        digits_demo(given.output, epochs=given.epochs)
        resnet_demo(given.output)
    except (GraphwrightError, OSError) as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    print_line(f"\nThe demo took {time.perf_counter() - start:.0f} s; its artifacts are in {given.output}/.")
    return 0


def digits_demo(output: Path, *, epochs: int, seconds: float = 1.0) -> StepTable:
    """Train, optimize in stages, compile each, print and return the table."""
    from .digits import load_digits, train

    data = load_digits()
    print_line(
        f"1. Train a residual CNN on {len(data.train_images)} scanned digits; "
        f"{len(data.test_images)} others are held out for testing."
    )
    start = time.perf_counter()
    with progress("training") as say:
        module = train(data, epochs=epochs, on_epoch=lambda done, total: _say_epoch(say, done, total))
    print_line(f"   trained {epochs} epochs in {time.perf_counter() - start:.0f} s")
    stages = _run_stages(module, data)
    table = _tabulate(stages, data, seconds)
    print_line()
    table.print("2. The original against each step, compiled for this CPU")
    _print_left_alone(stages)
    smallest = stages[-1].executable
    assert smallest is not None
    folder = smallest.save(output / "digits-int8")
    print_line(f"   the last row is in {folder}: {_listing(folder)}")
    report = json.dumps(plain(table.to_json()), indent=2) + "\n"
    (output / "demo.json").write_text(report, encoding="utf-8")
    (output / "demo.md").write_text(table.to_markdown() + "\n", encoding="utf-8")
    return table


def _run_stages(module: object, data: Digits) -> list[Stage]:
    """Trace, apply the pipeline stage by stage, and compile the graph after each stage."""
    import torch

    from ..backends.compile import compile as compile_graph
    from ..ir.trace import trace
    from ..passes.optimize import optimize

    example = torch.from_numpy(data.test_images[:1])
    with progress("tracing") as say:
        model = trace(module, (example,), name="digits")
        name = str(model.graph.inputs[0].name)
        calibration = [{name: image[None]} for image in data.train_images[:CALIBRATION_IMAGES]]
        feeds = {name: data.test_images[:1]}
        stages = [Stage("original", model)]
        for text in STAGES:
            say(f"running and compiling {text}")
            result = optimize(stages[-1].model, text, calibration=calibration)
            executable = compile_graph(result.model, pipeline="", check_feeds=feeds)
            stages.append(Stage(text, result.model, executable, [*result.report.records]))
    return stages


def _tabulate(stages: Sequence[Stage], data: Digits, seconds: float) -> StepTable:
    """Accuracy on the held-out images, distance to the original's outputs, sizes and latencies."""
    from ..backends.onnxruntime import OnnxRuntimeExecutable
    from ..ir.compare import compare
    from ..ir.reference import Reference

    table = StepTable(metric="accuracy")
    expected: np.ndarray | None = None
    for stage in stages:
        with progress(f"measuring {stage.name}"):
            contenders: dict[str, Executable] = {"onnxruntime": OnnxRuntimeExecutable(stage.model)}
            if stage.executable is not None:
                contenders = {"graphwright": stage.executable, **contenders}
            run = Reference(stage.model).run if stage.executable is None else stage.executable.run
            name = contenders["onnxruntime"].inputs[0].name
            logits = _logits(run, name, data.test_images)
            expected = logits if expected is None else expected
            step = measured_step(
                stage.name,
                stage.model,
                metric=float((logits.argmax(1) == data.test_labels).mean()),
                latency=measure_interleaved(contenders, {name: data.test_images[:1]}, seconds=seconds),
            )
            if stage.executable is not None and stage.executable.report is not None:
                report = stage.executable.report
                step.library_bytes = report.library_bytes + report.weight_bytes
            if stage.records:
                step.lossless = all(record.lossless for record in stage.records)
                step.seconds = sum(record.seconds for record in stage.records)
                step.comparison = compare(expected, logits)
            table.steps.append(step)
    return table


def _logits(
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], name: str, images: np.ndarray
) -> np.ndarray:
    """Outputs [n, 10], image by image as the model was traced."""
    return np.concatenate([next(iter(run({name: image[None]}).values())) for image in images])


def _print_left_alone(stages: Sequence[Stage]) -> None:
    from .passes_report import did_lines

    records = [record.to_json() for stage in stages for record in stage.records]
    for line in did_lines(records):
        print_line(f"   {line}")


def resnet_demo(output: Path) -> None:
    """Compile the light ResNet-50 and hold its output against ONNX Runtime's.

    Raises:
        CompileError: the outputs differ.
    """
    from ..backends.compile import compile as compile_graph
    from ..backends.onnxruntime import OnnxRuntimeExecutable
    from ..ir.compare import compare
    from ..ir.inputs import random_inputs
    from .zoo import light_model

    print_line(f"\n3. Compile {RESNET}.onnx of the onnx package (weights drawn at random, scaled).")
    with progress(f"compiling {RESNET}") as say:
        model = light_model(RESNET)
        executable = compile_graph(model)
        say(f"measuring {RESNET}")
        rival = OnnxRuntimeExecutable(model)
        feeds = random_inputs(model, seed=1)
        expected, actual = rival.run(feeds), executable.run(feeds)
        timings = measure_interleaved({"ours": executable, "onnxruntime": rival}, feeds, seconds=2.0)
        folder = executable.save(output / RESNET)
    assert executable.report is not None
    found = compare(expected, actual)
    top = {name: int(np.argmax(array)) for name, array in expected.items()}
    ours = {name: int(np.argmax(array)) for name, array in actual.items()}
    print_line(f"   compiled in {executable.report.seconds:.1f} s into {folder}")
    print_line(f"   library against ONNX Runtime: {found}")
    print_line(f"   top class: {ours} against {top}; outputs from {_range(expected)}")
    ratio = timings["ours"].median_ms / timings["onnxruntime"].median_ms
    print_line(f"   one thread: {timings['ours']} against {timings['onnxruntime']}, ratio {ratio:.2f}")


def _range(outputs: dict[str, np.ndarray]) -> str:
    arrays = list(outputs.values())
    return f"{min(a.min() for a in arrays):.3g} to {max(a.max() for a in arrays):.3g}"


def _say_epoch(say: object, done: int, total: int) -> None:
    if callable(say) and (done % 10 == 0 or sys.stderr.isatty()):
        say(f"training, epoch {done} of {total}")


def _listing(folder: Path) -> str:
    return ", ".join(f"{path.name} {human_bytes(path.stat().st_size)}" for path in sorted(folder.iterdir()))


if __name__ == "__main__":
    sys.exit(main())
