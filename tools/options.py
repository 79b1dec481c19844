"""Command-line options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..ir.errors import ToolError

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..ir.load import LoadedModel

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="An .onnx file, a .pt2 exported program, or pkg.module:callable that returns a torch module and "
        "example inputs.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
PluginOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="A file with passes of your own; may be repeated.",
        show_default=False,
    ),
]
DimOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dim", metavar="NAME=SIZE", help="Fix a symbolic dimension; may be repeated.", show_default=False
    ),
]
PipelineOption = Annotated[
    str | None,
    typer.Option(
        "--pipeline",
        metavar="TEXT",
        help="Passes to apply, such as 'simplify,prune-channels{ratio=0.5}'.",
        show_default=False,
    ),
]
RequiredPipelineOption = Annotated[
    str,
    typer.Option(
        "--pipeline",
        metavar="TEXT",
        help="Passes to apply, such as 'simplify,prune-channels{ratio=0.5}'.",
        show_default=False,
    ),
]
BoundOption = Annotated[
    str,
    typer.Option(
        "--bound",
        metavar="BOUND",
        help="What the outputs must keep: max_rel<=1e-4, max_abs<=0.01, sqnr>=30 or cosine>=0.999.",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE.npz|FOLDER",
        help="Inputs for passes that look at activations; arrays longer than the batch are cut into batches.",
        show_default=False,
    ),
]
CalibrationCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration-cache",
        metavar="FILE",
        help="Save measured ranges there and reuse them; a killed calibration goes on where it was.",
        show_default=False,
    ),
]
RandomCalibrationOption = Annotated[
    int,
    typer.Option(
        "--calibrate-random",
        metavar="N",
        min=0,
        help="Calibrate on N random inputs; for trying things out, the ranges mean little.",
    ),
]


def load_plugins(files: list[Path] | None) -> None:
    """Register the passes of the given files.

    Raises:
        PipelineError: a file is missing or does not load.
    """
    if not files:
        return
    from ..passes.plugins import load_plugin

    for file in files:
        load_plugin(file)


def load_model(spec: str, dims: list[str] | None) -> LoadedModel:
    """The model a user named, with the dimensions the user fixed.

    Raises:
        ModelError: it cannot be read.
        ToolError: a `--dim` is not NAME=SIZE, or the model has no such dimension.
    """
    from ..ir.load import load_any

    bindings = parse_dims(dims)
    loaded = load_any(spec)
    if bindings:
        bind(loaded.model, bindings)
    return loaded


def bind(model: ir.Model, bindings: dict[str, int]) -> None:
    """Give symbolic dimensions their sizes.

    Raises:
        ToolError: the model has no such dimension.
    """
    from ..ir.shapes import bind_dims

    names = symbolic_dims(model)
    for name in bindings:
        if name not in names:
            there = f"it has: {', '.join(sorted(names))}" if names else "all its dimensions are fixed"
            raise ToolError(f"--dim {name}: the model has no such dimension; {there}")
    bind_dims(model, bindings)


def symbolic_dims(model: ir.Model) -> set[str]:
    """Names of the symbolic dimensions of the model's inputs."""
    return {
        str(dim.value)
        for value in model.graph.inputs
        if value.shape is not None
        for dim in value.shape
        if not isinstance(dim, int) and dim.value is not None
    }


def parse_dims(dims: list[str] | None) -> dict[str, int]:
    """`["N=1"]` to `{"N": 1}`.

    Raises:
        ToolError: an entry is not NAME=SIZE with a positive size.
    """
    bindings = {}
    for text in dims or ():
        name, _, size = text.partition("=")
        if not name or not size.isdecimal() or int(size) < 1:
            raise ToolError(f"--dim takes NAME=SIZE such as N=1, not {text!r}")
        bindings[name] = int(size)
    return bindings


def parse_threads(text: str) -> list[int]:
    """`"1,2"` to `[1, 2]`.

    Raises:
        ToolError: an entry is not a positive number.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ToolError(f"--threads takes numbers such as 1,2, not {text!r}")
    return [int(part) for part in parts]


def pipeline_text(pipeline: str | None, preset: str | None) -> str | None:
    """The pipeline a user asked for by text or by preset name; None where neither was given.

    Raises:
        ToolError: both were given, or there is no such preset.
        PipelineError: the text is wrong; better now than after loading a large model.
    """
    from ..passes.pipeline import parse_pipeline
    from ..passes.registry import PRESETS

    if pipeline is not None and preset is not None:
        raise ToolError("give either --pipeline or --preset, not both")
    if preset is not None and preset not in PRESETS:
        raise ToolError(f"there is no preset {preset!r}; there are: {', '.join(sorted(PRESETS))}")
    text = preset if preset is not None else pipeline
    if text is not None:
        parse_pipeline(text)
    return text


RuleTimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--rule-timeout",
        metavar="SECONDS",
        help="Stop a rule that takes longer at one node, and report it; 60 by default, 0 for no limit.",
        show_default=False,
        min=0,
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
PassTargetOption = Annotated[
    str | None, typer.Option("--target", help="Device that passes may look at.", show_default=False)
]
