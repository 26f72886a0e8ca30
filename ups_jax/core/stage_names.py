"""The stages by name, and what each starts from. This module imports nothing, so that a command's help is quick."""

from __future__ import annotations

# In the order in which they are trained.
STAGES = ("operator", "steady_prior", "diffusion_residual", "consistency_distill")
# Other names of stages, on the command line and in `stages`.
STAGE_ALIASES = {"diff_residual": "diffusion_residual"}
# The stages whose results a stage starts from, for each kind of task.
STAGE_NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "transient": {"diffusion_residual": ("operator",), "consistency_distill": ("operator", "diffusion_residual")},
    "steady": {"diffusion_residual": ("steady_prior",), "consistency_distill": ("steady_prior", "diffusion_residual")},
}
# The stage whose corrector `consistency_distill` learns from.
TEACHER = "diffusion_residual"
