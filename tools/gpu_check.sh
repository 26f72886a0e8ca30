#!/usr/bin/env bash
# What this machine's GPU does with ups_jax, in at most ten minutes: one table, and gpu_check.json.
# `tools/gpu_check.sh --dry` runs the same sections in small on a CPU.
exec "${PYTHON:-python}" "$(dirname "$0")/gpu_check.py" "$@"
