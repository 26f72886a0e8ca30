"""Use of trained models: loading, rollouts in physical units, files of predicted states, and export."""
