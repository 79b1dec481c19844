"""Models from files and from Python: checked, in the canonical opset, every node with a name of its own."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from .collector import without_collector
from .damage import check_names
from .early_operators import lend_domain, restore_domain
from .errors import GraphwrightError, ModelError, VerifyError
from .normalize import check_operators, normalize
from .quiet import collected_warnings
from .stored import TensorReader, check_proto
from .upgrade import upgrade
from .verify import verify
from .wire_read import read_model

if TYPE_CHECKING:
    import onnx

    from .wire_split import Data

_CALLABLE = re.compile(r"^(?P<module>[A-Za-z_][\w.]*|.+\.py):(?P<name>[A-Za-z_][\w.]*)$")
_MAX_MESSAGE = 2**31 - 1


@dataclass(frozen=True)
class LoadedModel:
    """A model and what came with it.

    Attributes:
        model: the graph.
        example_inputs: the inputs it was traced with, by graph input name; None if it came from an ONNX file.
        source: what was asked for.
    """

    model: ir.Model
    example_inputs: dict[str, np.ndarray] | None
    source: str


@without_collector
def load(path: str | os.PathLike[str], *, name: str | None = None) -> ir.Model:
    """Reads an `.onnx` file, or a `.pt2` program saved by `torch.export.save`.

    Old opsets are rewritten in the canonical one, initializers that double as inputs become plain
    initializers, nodes get unique names. Large weights are read when they are first asked for, out of a file
    that stays open; it may be replaced or removed meanwhile, but not written into. External data is mapped,
    and must lie in the model's folder. Nothing in an ONNX file is executed; a `.pt2` file is as trustworthy
    as its sender.

    Args:
        path: the file.
        name: name of the graph; the file's own by default.

    Raises:
        ModelError: the file is missing, truncated or no model, its data is short, or it holds an operator
            that nobody knows.
        VerifyError: the graph breaks a structural rule.
    """
    loaded = _load_file(Path(path))
    if name is not None:
        loaded.model.graph.name = name
    return loaded.model


def load_any(spec: str | os.PathLike[str]) -> LoadedModel:
    """Loads what a person names on the command line.

    Args:
        spec: an `.onnx` file, a `.pt2` file, or `package.module:callable`, importable from the current
            folder, or `folder/file.py:callable`. The callable takes no arguments and returns one of: a torch
            module and its example inputs (a tensor, a tuple of positional inputs or a dict of keyword
            inputs), optionally followed by the dynamic shapes as for `trace`; a
            `torch.export.ExportedProgram`; an `onnx_ir.Model`.

    Raises:
        ModelError: there is no such file, module or callable, or what it gives is not a model.
    """
    text = os.fspath(spec)
    match = _CALLABLE.match(text)
    if match is None or os.path.exists(text):
        return _load_file(Path(text))
    with _importable_folder():
        return _from_callable(text, match["module"], match["name"])


def _load_file(path: Path) -> LoadedModel:
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder; give the model file in it")
    if not path.exists():
        raise ModelError(f"there is no file '{path}'")
    if path.suffix == ".pt2":
        from .trace import load_exported, trace_with_inputs

        model, inputs = trace_with_inputs(load_exported(path), name=path.stem)
        return LoadedModel(model, inputs, str(path))
    return LoadedModel(_load_onnx(path), None, str(path))


def _load_onnx(path: Path) -> ir.Model:
    proto, data = _read_proto(path)
    try:
        model = _deserialize(proto, path.parent, data)
    except VerifyError as error:
        raise VerifyError([_printable(f"in '{path}': {problem}") for problem in error.problems]) from error
    except GraphwrightError as error:
        raise ModelError(_printable(f"'{path}': {error}")) from error
    return model


def _printable(text: str) -> str:
    """Names from a file may hold line breaks and terminal codes; a message must not."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _read_proto(path: Path) -> tuple[onnx.ModelProto, Data]:
    """A message, and the data of large initializers by name, or where it lies."""
    from google.protobuf.message import DecodeError

    from .wire_split import read_message

    try:
        size = path.stat().st_size
        if size > _MAX_MESSAGE:
            raise ModelError(f"'{path}' is over 2 GB; such a model must keep its weights in external data")
        if not size:
            raise ModelError(f"'{path}' is empty")
        proto, data = read_message(path)
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror}") from error
    except DecodeError as error:
        raise ModelError(f"'{path}' is not an ONNX model, or it is truncated") from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelError(f"'{path}' is not an ONNX model: it holds no graph")
    if not proto.opset_import and proto.ir_version >= 3:
        raise ModelError(f"'{path}' is not a valid ONNX model: it imports no operator set")
    return proto, data


def _deserialize(proto: onnx.ModelProto, folder: Path, data: Data) -> ir.Model:
    """A model from a message: tensors and names checked, known operators, canonical opset, names.

    Raises:
        GraphwrightError: the graph breaks a rule, holds an unknown operator, or cannot be upgraded.
    """
    reader = TensorReader(folder, data)
    with collected_warnings("onnx_ir"):
        model = read_model(proto, reader) if proto.opset_import else None
        if model is None:
            model = _read_rare(proto, folder, data, reader)
    _restore_input_types(model, proto)
    normalize(model)
    check_operators(model)
    early = lend_domain(model)
    verify(model)
    before = model.opset_imports.get("")
    upgrade(model)
    if early:
        restore_domain(model)
    if early or before != model.opset_imports.get(""):
        normalize(model)
        verify(model)
    return model


def _read_rare(proto: onnx.ModelProto, folder: Path, data: Data, reader: TensorReader) -> ir.Model:
    """A model from a message that holds something rare, or damage: checked as a whole before it is read."""
    check_names(proto)
    check_proto(proto, folder, data)
    if not proto.opset_import:
        proto.opset_import.add(domain="", version=1)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        reason = _root_cause(error)
        if reason.startswith("Sparse tensors"):
            reason = "a Constant is sparse, which is not supported; store it dense"
        raise ModelError(f"the graph cannot be read: {reason}") from error
    reader.read_all(model)
    return model


def _restore_input_types(model: ir.Model, proto: onnx.ModelProto) -> None:
    """An input that is an output too was described twice, and the output's description may say less."""
    for value, declared in zip(model.graph.inputs, proto.graph.input, strict=True):
        if value.is_graph_output() and value.shape is None:
            value.shape = ir.serde.deserialize_type_proto_for_shape(declared.type)
            value.type = ir.serde.deserialize_type_proto_for_type(declared.type)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _from_callable(spec: str, module_name: str, attribute: str) -> LoadedModel:
    from .trace import is_exported_program, is_torch_module, trace_with_inputs

    try:
        found: Any = _import(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except GraphwrightError:
        raise
    except ModuleNotFoundError as error:
        raise ModelError(f"'{spec}': no module named '{error.name}' can be imported from here") from error
    except AttributeError as error:
        raise ModelError(f"'{spec}': module '{module_name}' has no '{attribute}'") from error
    except Exception as error:
        raise ModelError(f"'{spec}': importing '{module_name}' failed: {_line(error)}") from error
    if not callable(found):
        raise ModelError(
            f"'{spec}' is not callable; it must be a function that returns a module and its inputs"
        )
    try:
        made = found()
    except Exception as error:
        raise ModelError(f"'{spec}' failed: {_line(error)}") from error
    name = attribute.rpartition(".")[2]
    if isinstance(made, ir.Model):
        return LoadedModel(made, None, spec)
    if is_exported_program(made):
        model, inputs = trace_with_inputs(made, name=name)
        return LoadedModel(model, inputs, spec)
    if isinstance(made, tuple) and len(made) in (2, 3) and is_torch_module(made[0]):
        args, kwargs = _arguments(spec, made[1])
        dynamic = made[2] if len(made) == 3 else None
        model, inputs = trace_with_inputs(made[0], args, kwargs, dynamic_shapes=dynamic, name=name)
        return LoadedModel(model, inputs, spec)
    raise ModelError(
        f"'{spec}' returned {_describe(made)}; it must return (torch module, example inputs), "
        "an ExportedProgram or an onnx_ir.Model"
    )


def _import(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    if not os.path.isfile(name):
        raise ModelError(f"there is no file '{name}'")
    spec = importlib.util.spec_from_file_location(f"graphwright_model_{Path(name).stem}", name)
    if spec is None or spec.loader is None:
        raise ModelError(f"'{name}' cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    # Registered under its name, as dataclasses and pickling inside the file expect.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _arguments(spec: str, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    if hasattr(inputs, "shape"):
        return (inputs,), {}
    raise ModelError(
        f"'{spec}' returned {_describe(inputs)} as example inputs; give a tensor, a tuple or a dict"
    )


def _describe(thing: Any) -> str:
    if isinstance(thing, tuple):
        return f"a tuple of {len(thing)} ({', '.join(type(item).__name__ for item in thing[:4])})"
    return f"a {type(thing).__name__}"


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def _importable_folder() -> Iterator[None]:
    """Makes the current folder importable, as `python -m` does."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
