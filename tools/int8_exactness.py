"""How exactly each integer kernel of a whole model computes, one by one, on ONNX Runtime's own integers.

    python -m graphwright.tools.int8_exactness [--only REGEX] [--target NAME,...] [-o FILE.md]
    python -m graphwright.tools.int8_exactness --model FILE.onnx [--input FILE.npz]

Without `--target` the kernels of every instruction set that this machine has are compared: on x86 `amx`,
`vnni` and `avx2`, on ARM `dotprod` and `neon`.

In a deep network one flipped step makes others flip, so the outputs of whole models say little about kernels.
Here the quantized model is cut at every quantized tensor: each becomes a result and, anew, an input. The
cut model is compiled and given the integers that ONNX Runtime (optimizations off) computed in the uncut one,
so that nothing flips because something before it did. Ends with code 1 where a tensor is more than one step
off or less than 99.9 % of its elements are equal.
"""

from __future__ import annotations

import dataclasses
import gc
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import onnx_ir as ir
import typer

from ..ir.errors import GraphwrightError, ToolError
from .console import print_line, progress
from .int8_measure import FLOAT, MODELS, build_model, known_models, quantize
from .steps import markdown_table

if TYPE_CHECKING:
    from ..backends.target import Target

MOST_STEPS, LEAST_EQUAL = 1, 0.999
_QUANTIZERS = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"}
_INTEGERS = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16}
_GIVEN = "given/"
_EVERY = "every"
_INSTRUCTION_SETS = ("amx", "vnni", "avx2", "dotprod", "neon")
_INSTRUCTION = re.compile(r"\b(tdpb[su]{2}d|vpdpbusd|vpdpwssd|vpmaddwd|sdot|widening|multiply|dp4a)\b")


@dataclass(frozen=True)
class Tensor:
    """One quantized tensor: elements, how many of them are equal, and by how many steps the worst is off."""

    name: str
    elements: int
    equal: int
    steps: int

    @property
    def holds(self) -> bool:
        """At most one step off, 99.9 % equal."""
        return self.steps <= MOST_STEPS and self.equal >= LEAST_EQUAL * self.elements


@dataclass(frozen=True)
class Exactness:
    """All quantized tensors of a model on one target."""

    model: str
    target: str
    kernels: int
    tensors: tuple[Tensor, ...]
    instructions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """How many of the kernels multiply by which instruction."""

    @property
    def missed(self) -> list[Tensor]:
        """Tensors outside the bounds."""
        return [tensor for tensor in self.tensors if not tensor.holds]

    def cells(self) -> list[str]:
        """A row of the table."""
        elements = sum(tensor.elements for tensor in self.tensors)
        equal = sum(tensor.equal for tensor in self.tensors)
        worst = min(
            (tensor.equal / tensor.elements for tensor in self.tensors if tensor.elements), default=1.0
        )
        return [
            self.model,
            self.target,
            str(self.kernels),
            ", ".join(f"{count} {name}" for name, count in sorted(self.instructions.items())),
            str(len(self.tensors)),
            f"{elements:,}",
            f"{equal / max(elements, 1):.5%}",
            f"{worst:.3%}",
            str(max((tensor.steps for tensor in self.tensors), default=0)),
            str(len(self.missed)),
        ]


def cut(model: ir.Model) -> tuple[ir.Model, list[str]]:
    """The model with every quantized tensor as a result and, where it is read, as an input of its own.

    Args:
        model: the quantized model, shapes inferred; not changed.

    Returns:
        The cut model and the names of its quantized tensors. What is fed for tensor `t` is called `given/t`.

    Raises:
        ToolError: a quantized tensor has no known shape.
    """
    from ..ir.clone import clone

    copy = clone(model)
    graph = copy.graph
    values = [value for node in graph for value in _quantized(node)]
    for value in values:
        if value.shape is None or not value.shape.is_static():
            raise ToolError(f"the shape of '{value.name}' does not follow from those of the inputs")
        given = ir.Value(name=f"{_GIVEN}{value.name}", shape=value.shape, type=value.type)
        read = [(user, index) for user, index in value.uses()]
        for user, index in read:
            user.replace_input_with(index, given)
        if read:
            graph.inputs.append(given)
        if not value.is_graph_output():
            graph.outputs.append(value)
    return copy, [str(value.name) for value in values]


def _quantized(node: ir.Node) -> Iterator[ir.Value]:
    if node.op_type in _QUANTIZERS and node.domain in ("", "ai.onnx"):
        yield from (value for value in node.outputs[:1] if value.name and value.dtype in _INTEGERS)


def compare_kernels(
    name: str, quantized: ir.Model, target: str | Target, feeds: Mapping[str, np.ndarray]
) -> Exactness:
    """Compile the cut model and compare every quantized tensor with the reference's.

    Args:
        name: of the model, for the table.
        quantized: a model with Q/DQ pairs; not changed.
        target: what to compile for; it must run here.
        feeds: inputs of the model by name.

    Raises:
        GraphwrightError: it cannot be compiled, or holds nothing that is quantized.
    """
    from ..backends.compile import compile as compile_graph
    from ..ir.reference import Reference
    from ..ir.shapes import infer_shapes

    infer_shapes(quantized)
    parts, names = cut(quantized)
    if not names:
        raise ToolError(f"{name} holds no quantized tensor")
    expected = Reference(quantized).run_values(feeds, names)
    wanted = {str(value.name) for value in parts.graph.inputs}
    given = {
        **{key: array for key, array in feeds.items() if key in wanted},
        **{f"{_GIVEN}{key}": array for key, array in expected.items() if f"{_GIVEN}{key}" in wanted},
    }
    made = compile_graph(parts, target, pipeline="eliminate-dead", check=False)
    found = made.run(given)
    kernels = made.report.kernels if made.report is not None else ()
    integer = [each for each in kernels if each["kind"].startswith("integer")]
    used: Counter[str] = Counter()
    for each in integer:
        instruction = _INSTRUCTION.search(each["note"])
        used[instruction[0] if instruction is not None else each["kind"].removeprefix("integer ")] += each[
            "calls"
        ]
    return Exactness(
        name,
        target if isinstance(target, str) else target.name,
        used.total(),
        tuple(_tensor(key, expected[key], np.asarray(found[key])) for key in names),
        dict(used),
    )


def _tensor(name: str, expected: np.ndarray, found: np.ndarray) -> Tensor:
    if expected.shape != found.shape:
        raise ToolError(f"'{name}' has shape {list(found.shape)} instead of {list(expected.shape)}")
    apart = np.abs(expected.astype(np.int32) - found.astype(np.int32))
    return Tensor(name, apart.size, int((apart == 0).sum()), int(apart.max(initial=0)))


def markdown(rows: Sequence[Exactness]) -> str:
    """The table, and every tensor that misses the bounds."""
    head = ["model", "target", "integer kernels", "of these", "quantized tensors", "elements", "equal"]
    head += ["least equal of a tensor", "most steps apart", "outside the bounds"]
    missed = [
        f"- {row.model}, {row.target}: `{tensor.name}`: {tensor.equal / tensor.elements:.4%} of "
        f"{tensor.elements:,} equal, {tensor.steps} steps"
        for row in rows
        for tensor in row.missed
    ]
    return "\n".join(
        [markdown_table(head, [row.cells() for row in rows]), *(["", *missed] if missed else [])]
    )


def main(
    only: Annotated[str | None, typer.Option("--only", help="Regular expression; models to compare.")] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="A quantized ONNX file instead of the zoo's models.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option("--input", help="With --model: its inputs, .npz; random ones by default.")
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            help="Instruction sets (amx, vnni, avx2, dotprod, neon) or CPUs to compile for, separated by "
            "commas; they must run here. `every`: all instruction sets of this machine.",
        ),
    ] = _EVERY,
    table: Annotated[
        str, typer.Option("--table", help="What insert-qdq quantizes for; its table decides.")
    ] = "x86-vnni",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the table to this Markdown file.")
    ] = None,
) -> None:
    """Compare every integer kernel of whole models with ONNX Runtime."""
    try:
        targets = list(instruction_sets().values()) if target == _EVERY else _targets(target)
        rows = []
        for name, quantized, feeds in _subjects(only, model, inputs, table):
            for each in targets:
                with progress(f"{name}, {each.name}"):
                    rows.append(compare_kernels(name, quantized, each, feeds))
            gc.collect()
    except (GraphwrightError, OSError, re.error) as error:
        print(f"int8-exactness: error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    text = markdown(rows)
    print_line(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    if any(row.missed for row in rows):
        raise typer.Exit(1)


def instruction_sets() -> dict[str, Target]:
    """What this machine has integer kernels for, best first: all of it, then without the best."""
    from ..backends.target import host_target, resolve_target

    host = host_target()
    if host.family == "arm":
        sets = {"dotprod": host if host.has("dotprod") else None, "neon": resolve_target("armv8-a")}
    else:
        left = tuple(feature for feature in host.features if not feature.startswith("amx-"))
        plain = dataclasses.replace(host, features=left)
        sets = {
            "amx": host if host.has("amx-tile", "amx-int8") else None,
            "vnni": plain if plain.has("avx512vnni") or plain.has("avxvnni") else None,
            "avx2": resolve_target("x86-64-v3"),
        }
    named = {name: dataclasses.replace(each, name=name) for name, each in sets.items() if each is not None}
    return {name: each for name, each in named.items() if each.runs_here}


def _targets(names: str) -> list[Target]:
    from ..backends.features import split_targets

    return [_runnable(name) for name in split_targets(names)]


def _runnable(name: str) -> Target:
    from ..backends.target import resolve_target

    known = instruction_sets()
    if name in known:
        return known[name]
    if name in _INSTRUCTION_SETS:
        raise ToolError(f"this machine has no {name}; it has: {', '.join(known)}")
    resolved = resolve_target(name)
    reason = resolved.why_not_here()
    if reason:
        raise ToolError(f"code for {resolved.name} cannot be run here: {reason}")
    return dataclasses.replace(resolved, name=name)


def _subjects(
    only: str | None, file: Path | None, inputs: Path | None, table: str
) -> Iterator[tuple[str, ir.Model, Mapping[str, np.ndarray]]]:
    """Name, quantized model and feeds of everything to compare."""
    from ..ir.inputs import random_inputs
    from ..ir.load import load
    from ..passes.optimize import optimize

    if inputs is not None and file is None:
        raise ToolError("--input goes with --model")
    if file is not None:
        held = load(file)
        feeds = _read(inputs) if inputs is not None else random_inputs(held, seed=1)
        _settle(held, feeds)
        yield file.stem, held, feeds
        return
    names = list(MODELS) if only is None else [name for name in known_models() if re.search(only, name)]
    if not names:
        raise ToolError(f"--only {only!r} matches no model; there are: {', '.join(known_models())}")
    for name in names:
        model = optimize(build_model(name), FLOAT).model
        yield name, quantize(model, table), random_inputs(model, seed=1)


def _settle(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> None:
    """Open dimensions of the inputs get the sizes that are fed."""
    from ..ir.shapes import bind_dims
    from ..ir.symbols import name_input_dims

    name_input_dims(model)
    open_axes: dict[str, int] = {}
    for value in model.graph.inputs:
        array = feeds.get(str(value.name))
        if array is None or value.shape is None or len(value.shape) != np.ndim(array):
            continue
        sizes = zip(value.shape, np.shape(array), strict=True)
        open_axes |= {
            f"{value.name}:{axis}": size
            for axis, (known, size) in enumerate(sizes)
            if not isinstance(known, int)
        }
    bind_dims(model, open_axes)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as held:
            return {key: held[key] for key in held.files}
    except (ValueError, OSError) as error:
        raise ToolError(f"'{path}' is no .npz file of inputs: {error}") from None


if __name__ == "__main__":
    typer.run(main)
