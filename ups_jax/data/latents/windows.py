"""The windows of a batch as latents in place of fields: those that a walk may start from, and what it is scored by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ups_jax.data import windows
from ups_jax.data.latents.cache import LatentCache


@dataclass(frozen=True, eq=False, kw_only=True)
class LatentWindows:
    """Windows of `context` frames, `pushed` that a pushforward may be given, and those that are scored.

    The drawing is that of fields, on the grid of tokens: on an axis that wraps the codec commutes with rolls by whole
    patches, and with no other symmetry.
    """

    cache: LatentCache
    context: int
    pushed: int

    def plan(self, plan: windows.Plan) -> windows.Plan:
        """The drawing of fields as one of latents."""
        return replace(plan, shape=self.cache.manifest.tokens, channels=1, symmetries=())

    def read(self, drawn: windows.Draw) -> dict[str, np.ndarray]:
        """`latents`, whole tokens from the end of the context on, and `targets`, the newest frame's patches after."""
        frames = drawn.frames[:, self.context - 1 :]
        given, scored = frames[:, : 1 + self.pushed], frames[:, 1 + self.pushed :]
        return {
            "latents": windows.augment(self.cache.windows(drawn.ids, given), drawn),
            "targets": windows.augment(self.cache.windows(drawn.ids, scored, self.cache.manifest.carried), drawn),
        }
