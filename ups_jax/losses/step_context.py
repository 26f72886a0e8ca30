"""What a stage's loss may depend on besides parameters, batch and key, and the type of such a loss."""

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
    """The state of the training that a loss may depend on. An entry that a stage does not use is None.

    Attributes:
        epoch: Epochs done so far, with the fraction of the current one.
        parents: Weights of the stages that this stage needs, by stage.
        scale: Root mean square of the predictor's error, by channel.
        target: Average of the parameters that are trained, as the target of a self-distillation.
    """

    epoch: Float[Array, ""] | None = None
    parents: Mapping[str, PyTree] = field(default_factory=dict)
    scale: Float[Array, " c"] | None = None
    target: PyTree | None = None

    @property
    def error_scale(self) -> Float[Array, " c"]:
        """Return `scale`; raise ValueError where the caller has not set it."""
        if self.scale is None:
            raise ValueError("the loss of a corrector needs the error's scale: set `scale` of its StepContext")
        return self.scale


EMPTY_CONTEXT = StepContext()
# (batch, key) -> the batch with the random draws of each of its rows, made before rows are split into groups.
Draw = Callable[[Batch, Key[Array, ""]], Batch]
# (parameters, batch, key, context) -> (loss, terms by name), both means over the rows that count.
StageLoss = Callable[[PyTree, Batch, Key[Array, ""], StepContext], tuple[Float[Array, ""], Terms]]
