"""What passes share that look at some calibration data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from ....ir.errors import PassError
from ...base import Pass, PassContext
from ..calibration import Feeds, as_calibration
from .pairs import Sample, sampled_layers
from .walk import some_batches


@dataclass(frozen=True)
class SampledPass(Pass):
    """A pass that measures on at most so many samples."""

    samples: int = field(default=128, kw_only=True)
    """Samples of the calibration data that are looked at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("samples")

    def require_positive(self, *options: str) -> None:
        """Refuse counts below 1.

        Raises:
            PassError: An option is not at least 1.
        """
        for option in options:
            if (given := getattr(self, option)) < 1:
                raise PassError(f"{self.name}: option '{option}' must be at least 1, not {given}")

    def require_data(self, context: PassContext, purpose: str) -> None:
        """Refuse to work without calibration data.

        Args:
            context: Holds the data, or None.
            purpose: What the pass does with it, as "measures activations".

        Raises:
            PassError: There is none.
        """
        if context.calibration is None:
            raise PassError(f"it {purpose}: give `--calibration FILE.npz|FOLDER` (in Python: `calibration=`)")

    def batches(self, model: ir.Model, context: PassContext) -> list[Feeds]:
        """The feeds that are looked at.

        Raises:
            PassError: The data does not suit the model.
        """
        return some_batches(as_calibration(context.calibration), model, self.samples)


@dataclass(frozen=True)
class LayerRepair(SampledPass):
    """A pass that compares every quantized layer with its float one and may change it, front to back."""

    original: str | None = field(default=None, kw_only=True)
    """File of the float model; by default the one that this pipeline quantized."""

    def layers(self, model: ir.Model, context: PassContext) -> Iterator[Sample]:
        """Every quantized layer with what it sees; it may be changed before the next is asked for.

        Raises:
            PassError: There is no data, it does not suit the model, or the float model is not known.
        """
        self.require_data(context, "compares layers on data")
        return sampled_layers(model, self, context, original=self.original, samples=self.samples)
