"""One copy per reader of constants that hold the same number everywhere, where sharing them ties channels.

Common subexpressions that were merged (the zero states that two LSTMs start from, say) tie the channels of
readers that have nothing to do with each other. Any part of such a constant is as good as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from ...ir.clone import clone
from ...ir.constants import constant_array, constant_tensor
from ..base import PassContext
from ..channels import Dependencies
from ..rewriter import Rewriter


def separate_uniform(
    model: ir.Model, context: PassContext, analyse: Callable[[ir.Model], Dependencies]
) -> bool:
    """Give every reader of a uniform constant its own if more channels can go then; returns whether it did.

    Args:
        model: The model, shapes inferred.
        context: Of the pass that prunes.
        analyse: Dependency analysis as that pass wants it.
    """
    if next(_shared(model), None) is None:
        return False
    trial = clone(model)
    _separate(trial, Rewriter(trial))
    if _classes(analyse(trial)) <= _classes(analyse(model)):
        return False
    context.count("constants separated", _separate(model, context.rewriter(model)))
    return True


def _classes(found: Dependencies) -> int:
    """How many classes can be chosen from."""
    held = [found.classes_of(made.value, made.axis) for made in found.tracer.producers]
    return sum(1 for name in set(np.concatenate(held).tolist()) if name >= 0) if held else 0


def _separate(model: ir.Model, rewriter: Rewriter) -> int:
    count = 0
    for value in list(_shared(model)):
        array = constant_array(value)
        assert array is not None
        for node, index in list(value.uses())[1:]:
            rewriter.set_input(node, index, rewriter.initializer(str(value.name), array))
            count += 1
    return count


def _shared(model: ir.Model) -> Iterator[ir.Value]:
    """Stored floats of the main graph that are read more than once and are the same everywhere."""
    for value in model.graph.initializers.values():
        tensor = constant_tensor(value)
        if tensor is None or len(value.uses()) < 2 or tensor.size < 2 or not tensor.dtype.is_floating_point():
            continue
        array = np.asarray(constant_array(value))
        first = array.reshape(-1)[0]
        # The last one first: most weights are told apart by it alone.
        if array.reshape(-1)[-1] == first and bool(np.all(array == first)):
            yield value
