#!/usr/bin/env bash
# Measure ups_jax on this machine's GPU in at most ten minutes: one table on the terminal, and gpu_check.json.
# `tools/gpu_check.sh --dry` runs the same sections in small on a CPU.
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu_check.py" "$@"
