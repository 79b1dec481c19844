"""From torch to the graph: `torch.export`, then torch's ONNX exporter with its own optimizer off."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from .dynamic_dims import dim_names, rename_dims, without_names
from .errors import ModelError
from .exporter_faults import repair, simpler_program
from .fake_quantize import restore_pairs
from .normalize import normalize
from .quiet import silence
from .upgrade import upgrade

if TYPE_CHECKING:
    import torch

# What the exporter writes about the program as a whole is wrong after the first rewrite.
_STALE_METADATA = (
    "pkg.torch.export.ExportedProgram.graph_signature",
    "pkg.torch.export.ExportedProgram.range_constraints",
)


def trace(
    module: torch.nn.Module | torch.fx.GraphModule | torch.export.ExportedProgram,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    name: str | None = None,
) -> ir.Model:
    """The graph of a torch module, in the canonical opset.

    A module is traced as it behaves in `eval()` mode; its training flags are restored. Weights are copied, so
    training on does not change the graph; tied weights become one initializer. Parameters keep their torch
    names, nodes keep module path and source line as metadata (see `provenance`). Inputs are named after the
    arguments of `forward`, outputs after the keys of the dict that it returns, else `output`
    (`output_0`, ...).

    Args:
        module: a module, or a program that is exported already.
        args: example inputs of `forward`: a tensor, or a tuple of positional inputs.
        kwargs: keyword inputs.
        dynamic_shapes: as for `torch.export.export`; instead of `Dim` objects plain names will do
            (`{"x": {0: "batch"}}`), for any size that the module allows. Either names the dimension.
        name: name of the graph; by default the class of the module.

    Raises:
        ModelError: torch cannot export the module; the line gives its reason.
    """
    return trace_with_inputs(module, args, kwargs, dynamic_shapes=dynamic_shapes, name=name)[0]


def trace_with_inputs(
    module: Any,
    args: Any = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    name: str | None = None,
) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Like `trace`, with the example inputs as arrays by graph input name.

    Raises:
        ModelError: as for `trace`.
    """
    import torch

    names: dict[str, str] = {}
    if is_exported_program(module):
        program = module
    elif isinstance(module, torch.nn.Module):
        args, kwargs = _as_tuple(args), dict(kwargs or {})
        program = _export(module, args, kwargs, without_names(dynamic_shapes))
        names = dim_names(program, module.forward, args, kwargs, dynamic_shapes)
        name = name or type(module).__name__
    else:
        raise ModelError(f"cannot trace a {type(module).__name__}; give a torch module or an ExportedProgram")
    inputs = example_inputs(program)
    _refuse_plain_outputs(program)
    model = _to_model(program)
    repair(model)
    rename_dims(model, names)
    _separate_names(model)
    _name_outputs(model, program)
    _own_weights(model)
    if name:
        model.graph.name = name
    for key in _STALE_METADATA:
        model.graph.metadata_props.pop(key, None)
    normalize(model)
    upgrade(model)
    restore_pairs(model)
    normalize(model)
    kept = {str(value.name) for value in model.graph.inputs}
    return model, {key: array for key, array in inputs.items() if key in kept}


def load_exported(path: str | os.PathLike[str]) -> torch.export.ExportedProgram:
    """Reads a program that `torch.export.save` wrote. It may hold pickled objects: trust its sender.

    Raises:
        ModelError: the file is no such program, or it is truncated.
    """
    import torch

    try:
        with silence():
            return torch.export.load(path)
    except Exception as error:
        raise ModelError(
            f"'{path}' is not an exported torch program, or it is truncated: {_cause(error)}"
        ) from error


def is_torch_module(thing: Any) -> bool:
    """Whether this is a `torch.nn.Module`."""
    import torch

    return isinstance(thing, torch.nn.Module)


def is_exported_program(thing: Any) -> bool:
    """Whether this is a `torch.export.ExportedProgram`."""
    import torch

    return isinstance(thing, torch.export.ExportedProgram)


def _export(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> Any:
    import torch

    try:
        with silence(), _evaluating(module), torch.no_grad():
            return torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:
        raise ModelError(f"torch cannot export {type(module).__name__}: {_cause(error)}") from error


def _refuse_plain_outputs(program: Any) -> None:
    for index, spec in enumerate(program.graph_signature.output_specs):
        value = getattr(spec.arg, "value", None)
        if type(spec.arg).__name__ == "ConstantArgument" and value is not None:
            raise ModelError(f"output {index} of the module is the constant {value!r}; return tensors only")


def _to_model(program: Any) -> ir.Model:
    import torch

    def translated(what: Any) -> Any:
        with silence(), torch.no_grad():
            return torch.onnx.export(what, dynamo=True, optimize=False, verbose=False)

    try:
        exported = translated(program)
    except Exception as error:
        try:
            exported = translated(simpler_program(program))
        except Exception:
            # The first failure is about what the user wrote.
            raise ModelError(
                f"torch's ONNX exporter cannot translate the program: {_cause(error)}"
            ) from error
    if exported is None:
        raise ModelError("torch's ONNX exporter gave no program")
    return exported.model


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """Clears the training flags without `eval()`, which some modules forbid and others act upon."""
    flags = [(each, each.training) for each in module.modules()]
    try:
        for each, _ in flags:
            each.training = False
        yield
    finally:
        for each, training in flags:
            each.training = training


def _cause(error: BaseException) -> str:
    """The innermost reason as one line, with the place in the user's code where torch tells it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Constraints violated"):
        lines = [lines[1].removeprefix("- ")]
    elif len(lines) > 1 and lines[0].startswith("Found the following conflicts"):
        lines = [lines[1].removeprefix("- ")]
        if sizes := re.search(r"0/1 specialized due to hint of ([01]) for dimension (\S+?)\.?$", lines[0]):
            lines = [f"a dynamic size needs an example of 2 or more, but {sizes[2]} is {sizes[1]}"]
    reason = re.sub(r"\x1b\[\d+m", "", lines[0]) if lines else type(error).__name__
    if isinstance(error, (KeyError, AttributeError, TypeError)):
        reason = f"{type(error).__name__}: {reason}"
    if fixes := re.search(r"Suggested fixes:\s*(\S.*)", str(error)):
        reason = f"{reason}; torch suggests {fixes[1].strip()}"
    places = re.findall(r'File "([^"]+)", line (\d+), in', str(error))
    return f"{reason} (at {places[-1][0]}:{places[-1][1]})" if places else reason


def _as_tuple(args: Any) -> tuple[Any, ...]:
    if isinstance(args, tuple):
        return args
    return tuple(args) if isinstance(args, list) else (args,)


def example_inputs(program: torch.export.ExportedProgram) -> dict[str, np.ndarray]:
    """The inputs a program was exported with, by graph input name; empty if it does not keep them."""
    from torch.utils import _pytree

    if program.example_inputs is None:
        return {}
    args, kwargs = program.example_inputs
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    leaves = _pytree.tree_leaves((args, kwargs))
    if len(leaves) != len(specs):
        return {}
    arrays = {}
    for spec, leaf in zip(specs, leaves, strict=True):
        if type(spec.arg).__name__ == "TensorArgument":
            arrays[spec.arg.name] = _to_array(leaf)
        elif type(spec.arg).__name__ == "SymIntArgument":
            arrays[spec.arg.name] = np.asarray(leaf, dtype=np.int64)
    return arrays


def _to_array(tensor: Any) -> np.ndarray:
    from onnx_ir import tensor_adapters

    return np.array(tensor_adapters.TorchTensor(tensor.detach()).numpy())


def _own_weights(model: ir.Model) -> None:
    """Copies weights out of torch's memory; initializers that share memory (tied weights) become one."""
    first: dict[tuple[Any, ...], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        if value.const_value is None:
            continue
        view = value.const_value.numpy()
        key = (view.ctypes.data, view.shape, view.strides, view.dtype.name)
        twin = first.setdefault(key, value) if view.size else value
        if twin is not value and not value.is_graph_output():
            value.replace_all_uses_with(twin)
            del model.graph.initializers[name]
            continue
        value.const_value = ir.Tensor(np.array(view), dtype=value.const_value.dtype, name=name)


def _separate_names(model: ir.Model) -> None:
    """Renames results that the exporter called like an input or a weight (a buffer `mean`, `x.mean()`)."""
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    made = [
        value
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        for value in node.outputs
        if value.name
    ]
    wanted = taken | {value.name for value in made}
    for value in made:
        if value.name in taken:
            name = f"{value.name}_inner"
            while name in wanted:
                name += "_"
            wanted.add(name)
            value.name = name
        taken.add(value.name)


def _name_outputs(model: ir.Model, program: Any) -> None:
    """Names outputs after the structure that `forward` returns; each gets a value of its own."""
    _separate_outputs(model.graph)
    names = _output_names(program)
    if len(names) != len(model.graph.outputs):
        return
    taken = {
        value.name: value
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        for value in node.outputs
        if value not in set(model.graph.outputs)
    }
    reserved = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    for value in model.graph.outputs:
        value.name = None
    for value, name in zip(model.graph.outputs, names, strict=True):
        while name in reserved:
            name += "_out"
        reserved.add(name)
        if name in taken:
            taken[name].name = f"{name}_inner"
        value.name = name


def _separate_outputs(graph: ir.Graph) -> None:
    """Puts an Identity behind outputs that repeat, or that are inputs or weights handed through."""
    seen: set[ir.Value] = set()
    for index, value in enumerate(graph.outputs):
        if value in seen or value.producer() is None:
            node = ir.node("Identity", [value])
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
        seen.add(graph.outputs[index])


def _output_names(program: Any) -> list[str]:
    from torch.utils import _pytree

    specs = [spec for spec in program.graph_signature.output_specs if spec.kind.name == "USER_OUTPUT"]
    tree = program.call_spec.out_spec
    if tree.num_leaves != len(specs):
        return []
    paths = [
        path for path, _ in _pytree.tree_flatten_with_path(_pytree.tree_unflatten(range(len(specs)), tree))[0]
    ]
    tensors = [
        path for path, spec in zip(paths, specs, strict=True) if hasattr(spec.arg, "name") and spec.arg.name
    ]
    if len(tensors) == 1 and not _path_names(tensors[0]):
        return ["output"]
    return ["_".join(_path_names(path)) if _starts_with_name(path) else _numbered(path) for path in tensors]


def _path_names(path: Sequence[Any]) -> list[str]:
    """The keys on the way to a leaf: dict keys, attribute names or positions."""
    parts = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path]
    return [re.sub(r"\W+", "_", str(part)) for part in parts]


def _starts_with_name(path: Sequence[Any]) -> bool:
    return bool(path) and not hasattr(path[0], "idx")


def _numbered(path: Sequence[Any]) -> str:
    return "_".join(["output", *_path_names(path)])
