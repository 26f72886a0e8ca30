#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh environment, and uses it from an empty folder, as a pip user would:
# train, evaluate, rollout, inspect, and the README's Python example. Prints what it runs.
set -euo pipefail
unset PYTHONPATH
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A copy, because a folder build/ of an earlier wheel would leave its files in the new one.
mkdir "$work/source" "$work/empty"
cp -r "$root"/{ups_jax,configs,pyproject.toml,README.md,LICENSE} "$work/source"
"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/python" -m pip install --quiet --upgrade pip
"$work/env/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work" "$work/source"
"$work/env/bin/python" -m pip install --quiet "$work"/*.whl
"$work/env/bin/python" - "$work/source/README.md" > "$work/empty/example.py" <<'EXAMPLE'
import re, sys
print(re.search(r"```python\n(.*?)```", open(sys.argv[1]).read(), re.DOTALL)[1])
EXAMPLE
rm -r "$work/source"
cd "$work/empty"
export PATH="$work/env/bin:$PATH" WANDB_MODE=offline
set -x
ups-jax --version
ups-jax configs
ups-jax train --config tiny --run-dir runs/tiny stages.operator.epochs=1
ups-jax evaluate --run-dir runs/tiny evaluation.plots=false
ups-jax rollout --run-dir runs/tiny --input test:0 --steps 5 --output out.hdf5
ups-jax inspect --no-picture data/burgers1d_tiny.hdf5
python example.py
python -c "import ups_jax; print(ups_jax.__file__)" | grep "$work/env"
