"""The type of a stage's loss, and of its inputs besides parameters, batch and random key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
from jaxtyping import Array, Float, Key, PyTree

from ups_jax.models import Batch

Terms = dict[str, Float[Array, ""]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Inputs of a stage's loss besides parameters, batch and random key; unused ones are None or empty.

    Attributes:
        epoch: Epochs completed, with the fraction of the current one.
        parents: Weights of the prerequisite stages of this stage, by stage name.
        scale: Root mean square of the predictor's error per channel, on normalised fields.
        target: Running average of the trained parameters, the target of self-distillation.
    """

    epoch: Float[Array, ""] | None = None
    parents: Mapping[str, PyTree] = field(default_factory=dict)
    scale: Float[Array, " c"] | None = None
    target: PyTree | None = None

    @property
    def error_scale(self) -> Float[Array, " c"]:
        """Return `scale`, or raise ValueError if it is None."""
        if self.scale is None:
            raise ValueError("a corrector's loss needs the scale of the predictor's error; set `scale` of StepContext")
        return self.scale


EMPTY_CONTEXT = StepContext()
# (batch, key) -> the batch with random draws for each row in `Batch.draws`. It is called before the rows are split into
# micro-batches, so that the draws do not depend on the split.
Draw = Callable[[Batch, Key[Array, ""]], Batch]
# (parameters, batch, key, context) -> (loss, terms by name), both means over the rows that the batch's mask keeps.
StageLoss = Callable[[PyTree, Batch, Key[Array, ""], StepContext], tuple[Float[Array, ""], Terms]]
