"""Which index of which axis of every tensor is tied to which: dependency analysis, and removal by it.

- `labels`: labels on indices, ties between them, and the classes that follow.
- `tracer`: the state of one walk over a graph; `analysis`: the walk itself.
- `contractions`, `layout`, `elementwise`, `reductions`, `windows`: what each operator does to labels.
- `groups`: which classes are pruned side by side, and how important each is.
- `removal`: removing classes from a model, the masked model, and the proof that the two agree.
"""

from .analysis import Dependencies, analyse
from .groups import Group, find_groups
from .removal import Removal, apply_removal, masked_model, plan_removal

__all__ = [
    "Dependencies",
    "Group",
    "Removal",
    "analyse",
    "apply_removal",
    "find_groups",
    "masked_model",
    "plan_removal",
]
