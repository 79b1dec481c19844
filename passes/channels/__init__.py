"""Which index of which axis of every tensor is tied to which: dependency analysis, and removal by it.

- `labels`: labels on indices, ties between them, and the classes that follow.
- `tracer`: the state of one walk over a graph; `analysis`: the walk itself.
- `contractions`, `attention`, `recurrent`, `layout`, `reshapes`, `indexing`, `elementwise`, `reductions`,
  `windows`, `control`: what each operator does to labels; `sizes`: how shape operands follow.
- `groups`: which classes are pruned side by side.
- `removal`: removing classes; the masked model, with `statistics` for its normalizations; `proof`
  that the two agree. `places` names nodes and values alike in all copies of a model.
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
