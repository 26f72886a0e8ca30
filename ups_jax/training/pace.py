"""What a record of metrics.jsonl says about epochs: how long one takes, and how many passed since the best value."""

from __future__ import annotations

import time

from ups_jax.training.plan import Plan


class EpochClock:
    """Wall seconds an epoch, from one evaluation to the next, evaluation and saves included.

    It starts after the first step, which waits for the compiler.
    """

    def __init__(self, steps_per_epoch: int) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._since: tuple[int, float] | None = None

    def step(self, step: int) -> None:
        """A step was begun."""
        if self._since is None:
            self._since = step, time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """`epoch_time_sec` at a finished step, from which the next reading counts; nothing where no step was timed."""
        if self._since is None or step == self._since[0]:
            return {}
        begin, moment = self._since
        self._since = step, time.monotonic()
        return {"epoch_time_sec": (self._since[1] - moment) / (step - begin) * self._steps_per_epoch}


def epochs_since_best(step: int, evaluations_since_best: int, plan: Plan) -> float:
    """Epochs from the best evaluation to the one at `step`; they lie `plan.eval_steps` apart, the last may be closer.

    `evaluations_since_best` is 0 where the one at `step` is the best.
    """
    if evaluations_since_best == 0:
        return 0.0
    before = (step - 1) // plan.eval_steps * plan.eval_steps
    best = before - (evaluations_since_best - 1) * plan.eval_steps
    # Where none was ever finite, there are as many as there were evaluations.
    return (step - max(best, 0)) / plan.steps_per_epoch
