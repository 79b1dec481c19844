"""Names of passes and presets.

Other packages add theirs through the entry point group `graphwright.passes`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from typing import TypeVar

from ..ir.errors import PipelineError
from .base import Pass

ENTRY_POINT_GROUP = "graphwright.passes"

# Modules are imported when one of their passes is first asked for, so that importing the package stays cheap.
_BUILT_IN = {
    "absorb-biases": ".absorb_biases",
    "awq": ".awq",
    "bias-correction": ".bias_correction",
    "canonicalize": ".canonicalize",
    "convert-float": ".convert_float",
    "drop-expands": ".drop_expands",
    "eliminate-common-subexpressions": ".eliminate_common_subexpressions",
    "eliminate-dead": ".eliminate_dead",
    "eliminate-identity": ".eliminate_identity",
    "fold-batch-norm": ".fold_batch_norm",
    "fold-constants": ".fold_constants",
    "merge-casts": ".merge_casts",
    "merge-convs": ".merge_convs",
    "merge-pads": ".merge_pads",
    "merge-reshapes": ".merge_reshapes",
    "merge-shapes": ".merge_shapes",
    "merge-slices": ".merge_slices",
    "merge-softmax-reshapes": ".merge_softmax_reshapes",
    "merge-transposes": ".merge_transposes",
    "fuse-activation": ".fuse_activation",
    "fuse-attention": ".fuse_attention",
    "fuse-conv-activation": ".fuse_conv_activation",
    "fuse-gemm": ".fuse_gemm",
    "fuse-rotary": ".fuse_rotary",
    "fuse-skip-normalization": ".fuse_skip_normalization",
    "merge-projections": ".merge_projections",
    "fuse-softmax": ".fuse_softmax",
    "fuse-squeeze-excite": ".fuse_squeeze_excite",
    "fuse-swish": ".fuse_swish",
    "fuse-group-norm": ".fuse_group_norm",
    "fuse-l2-normalization": ".fuse_l2_normalization",
    "fuse-normalization": ".fuse_normalization",
    "inline-functions": ".inline_functions",
    "inline-ifs": ".inline_ifs",
    "lower-einsum": ".lower_einsum",
    "equalize": ".equalize",
    "equalize-activations": ".equalize_activations",
    "ada-round": ".ada_round",
    "gptq": ".gptq",
    "hqq": ".hqq",
    "insert-qdq": ".insert_qdq",
    "prune-blocks": ".prune_blocks",
    "prune-channels": ".prune_channels",
    "quantize-dynamic": ".quantize_dynamic",
    "quantize": ".quantize",
    "quantize-weights": ".quantize_weights",
    "relax-clips": ".relax_clips",
    "smooth-quant": ".smooth_quant",
    "split-sequences": ".split_sequences",
    "stabilize": ".stabilize",
}

PRESETS = {
    "simplify": "fold-constants,inline-ifs,split-sequences,stabilize,eliminate-dead",
    # Standard operators first, functions with a body last; for graphs after `simplify,fold-batch-norm`.
    "fuse": (
        "lower-einsum,merge-convs,fuse-normalization,fuse-group-norm,merge-transposes,fuse-softmax,fuse-activation,"
        "fuse-rotary,fuse-attention,eliminate-common-subexpressions,merge-projections,fuse-gemm,"
        "fuse-l2-normalization,fuse-swish,fuse-squeeze-excite,fuse-skip-normalization,fuse-conv-activation,"
        "eliminate-dead"
    ),
}
"""Named pipelines: usable wherever a pass name is, expanded when the pipeline is parsed."""

_registered: dict[str, type[Pass]] = {}

P = TypeVar("P", bound=type[Pass])


def register(cls: P) -> P:
    """Class decorator: make a pass usable by its `name` in every pipeline.

    Raises:
        PipelineError: The class has no name, or the name belongs to another pass.
    """
    if not cls.name:
        raise PipelineError(f"{cls.__qualname__} needs a class attribute 'name' to be registered")
    known = _registered.get(cls.name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise PipelineError(f"pass name '{cls.name}' is taken by {known.__module__}.{known.__qualname__}")
    built_in = _BUILT_IN.get(cls.name)
    if built_in is not None and not cls.__module__.endswith(built_in):
        raise PipelineError(f"pass name '{cls.name}' is taken by a built-in pass")
    if cls.name in PRESETS:
        raise PipelineError(f"pass name '{cls.name}' is taken by a named pipeline")
    _registered[cls.name] = cls
    return cls


def lookup(name: str) -> type[Pass]:
    """Return the pass class called `name`.

    Raises:
        PipelineError: No such pass; the message suggests the nearest name.
    """
    if name not in _registered and name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name], __package__)
    if name not in _registered:
        _load_entry_point(name)
    if name in _registered:
        return _registered[name]
    names = [*all_names(), *PRESETS]
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean '{close[0]}'?" if close else "`graphwright passes` lists them"
    raise PipelineError(f"there is no pass '{name}'; {hint}")


def all_names() -> list[str]:
    """Return the names of all passes, sorted."""
    outside = {point.name for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}
    return sorted({*_BUILT_IN, *_registered, *outside})


def _load_entry_point(name: str) -> None:
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        try:
            loaded = point.load()
        except Exception as error:
            raise PipelineError(f"pass '{name}' of {point.value} does not load: {error}") from error
        if isinstance(loaded, type) and issubclass(loaded, Pass):
            register(loaded)
