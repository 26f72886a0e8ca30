"""Names of the training stages and their prerequisite stages. The module imports nothing, so that `--help` is fast."""

from __future__ import annotations

# In the order of training.
STAGES = ("operator", "steady_prior", "diffusion_residual", "consistency_distill")
# Aliases, on the command line and in the section `stages`.
STAGE_ALIASES = {"diff_residual": "diffusion_residual"}
# For each kind of task, the stages that must be trained before a stage.
STAGE_NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "transient": {"diffusion_residual": ("operator",), "consistency_distill": ("operator", "diffusion_residual")},
    "steady": {"diffusion_residual": ("steady_prior",), "consistency_distill": ("steady_prior", "diffusion_residual")},
}
# The stage whose corrector is the teacher of `consistency_distill`.
TEACHER = "diffusion_residual"
