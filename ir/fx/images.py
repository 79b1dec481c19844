"""Resizing and sampling of images."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F

from ..opset import CANONICAL_OPSET
from ..reference import run_reference
from ..tensors import tensor_of
from .dtypes import tensor_from
from .emitter import Emitter, Form, rank, refusal, static_sizes


def _resize(emitter: Emitter, node: ir.Node) -> Any:
    x, roi, scales, sizes = [*node.inputs, None, None, None][:4]
    before, after = static_sizes(x), static_sizes(node.outputs[0])
    known = None if scales is None else emitter.literal(scales)
    scales = None if known is not None and not known.size else scales
    own = _torch_mode(node, rank(x, node))
    tensor = emitter.tensor(x)
    if before is not None and after is not None and (scales is None or known is not None):
        single = any(size == 1 for size in after[2:])
        if (
            own
            and before[:2] == after[:2]
            and not single
            and (scales is None or _exact(before, known, after))
        ):
            return emitter.call(F.interpolate, tensor, after[2:], None, *own)
        if roi is None or emitter.literal(roi) is not None:
            return _resize_by_matrices(emitter, node, before, after, known if scales is not None else None)
    if own is None or "axes" in node.attributes:
        raise refusal(node, "this mode of resizing needs static sizes and scales")
    if scales is not None:
        return emitter.call(interpolate_by, tensor, emitter.host(scales), *own)
    if sizes is None:
        raise refusal(node, "it has neither scales nor sizes")
    return emitter.call(interpolate_to, tensor, emitter.host(sizes), *own)


def _exact(before: list[int], scales: np.ndarray | None, after: list[int]) -> bool:
    """Whether scales make whole sizes, so that sizes alone say the same."""
    assert scales is not None
    return len(scales) == len(before) and all(
        size * float(scale) == wanted for size, scale, wanted in zip(before, scales, after, strict=True)
    )


def interpolate_by(x: torch.Tensor, scales: list[float], mode: str, corners: bool | None) -> torch.Tensor:
    """Resizes the spatial axes by factors; `scales` holds all axes."""
    return F.interpolate(x, None, [float(each) for each in scales[2:]], mode, corners)


def interpolate_to(x: torch.Tensor, sizes: list[Any], mode: str, corners: bool | None) -> torch.Tensor:
    """Resizes the spatial axes; `sizes` holds all axes."""
    return F.interpolate(x, sizes[2:], None, mode, corners)


def _torch_mode(node: ir.Node, axes: int) -> tuple[str, bool | None] | None:
    """Return torch's name of a mode that it computes alike, and its `align_corners`."""
    attributes = node.attributes
    mode = attributes.get_string("mode", "nearest")
    places = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if attributes.get_int("antialias", 0) or attributes.get_int("exclude_outside", 0):
        return None
    if attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch" or not 3 <= axes <= 5:
        return None
    if mode == "nearest":
        floors = attributes.get_string("nearest_mode", "round_prefer_floor") == "floor"
        return ("nearest", None) if places == "asymmetric" and floors else None
    if places not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    corners = places == "align_corners"
    if mode == "linear":
        return ("linear", "bilinear", "trilinear")[axes - 3], corners
    return (
        ("bicubic", corners) if axes == 4 and attributes.get_float("cubic_coeff_a", -0.75) == -0.75 else None
    )


def along(x: torch.Tensor, matrix: torch.Tensor, axis: int) -> torch.Tensor:
    """A matrix `[out, in]` applied along an axis."""
    moved = torch.movedim(x, axis, -1)
    return torch.movedim(torch.matmul(moved, matrix.to(x.dtype).transpose(0, 1)), -1, axis)


def _resize_by_matrices(
    emitter: Emitter, node: ir.Node, before: list[int], after: list[int], scales: np.ndarray | None
) -> Any:
    """Resizing is linear and works axis by axis: the reference gives each axis its matrix."""
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise refusal(node, "cropping while resizing")
    x = node.inputs[0]
    axes = [axis % len(before) for axis in node.attributes.get_ints("axes", range(len(before)))]
    made = emitter.tensor(x)
    integral = x is not None and x.dtype is not None and not x.dtype.is_floating_point()
    if integral:
        kind = made
        made = emitter.call(torch.Tensor.to, made, torch.float32)
    for place, axis in enumerate(axes):
        factor = float(scales[place]) if scales is not None else None
        if before[axis] == after[axis] and factor in (None, 1.0):
            continue
        matrix = _axis_matrix(node, before[axis], after[axis], factor)
        made = emitter.call(
            along, made, emitter.constant(tensor_from(matrix), f"{node.name}.axis_{axis}"), axis
        )
    return emitter.call(like, made, kind) if integral else made


def like(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return x in the type of another tensor; integers are cut off."""
    return x.to(other.dtype)


def _axis_matrix(node: ir.Node, before: int, after: int, factor: float | None) -> np.ndarray:
    """What the reference makes of unit vectors: `[after, before]`."""
    unit = np.eye(before, dtype=np.float32)[:, None, :, None]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(unit.shape))

    def stored(name: str, array: np.ndarray) -> ir.Value:
        return ir.Value(name=name, const_value=tensor_of(array, name))

    if factor is None:
        grid = [None, None, None, stored("sizes", np.array([before, 1, after, 1], np.int64))]
    else:
        grid = [None, None, stored("scales", np.array([1, 1, factor, 1], np.float32)), None]
    kept = {
        name: attribute
        for name, attribute in node.attributes.items()
        if name not in ("axes", "keep_aspect_ratio_policy")
    }
    resize = ir.Node("", "Resize", [x, *(each for each in grid[1:])], list(kept.values()), num_outputs=1)
    resize.outputs[0].name = "y"
    resize.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [x], resize.outputs, nodes=[resize], initializers=[each for each in grid if each is not None],
        opset_imports={"": CANONICAL_OPSET}, name="axis",
    )  # fmt: skip
    model = ir.Model(graph, ir_version=10)
    return np.ascontiguousarray(run_reference(model, {"x": unit})["y"][:, 0, :, 0].T)


def _grid_sample(emitter: Emitter, node: ir.Node) -> Any:
    attributes = node.attributes
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(m := attributes.get_string("mode", "linear"), m)
    padding = attributes.get_string("padding_mode", "zeros")
    corners = bool(attributes.get_int("align_corners", 0))
    if mode == "bicubic" and rank(node.inputs[0], node) != 4:
        raise refusal(node, "torch samples cubically in two dimensions only")
    return emitter.call(F.grid_sample, *emitter.tensors(node), mode, padding, corners)


def _affine_grid(emitter: Emitter, node: ir.Node) -> Any:
    assert node.inputs[1] is not None
    corners = bool(node.attributes.get_int("align_corners", 0))
    return emitter.call(F.affine_grid, emitter.tensor(node.inputs[0]), emitter.host(node.inputs[1]), corners)


FORMS: dict[str, Form] = {"Resize": _resize, "GridSample": _grid_sample, "AffineGrid": _affine_grid}
