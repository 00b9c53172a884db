#!/usr/bin/env bash
# Wheel and sdist of the last commit in dist/. Then the wheel by itself, as a stranger has it: in an empty environment and
# an empty folder, `qhw demo --quick`, and a training and an evaluation of the README. Some ten minutes, some 6 GB in $TMPDIR.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python dist=$PWD/dist
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git clone --quiet . "$work/clone"
rm -rf "$dist"
(cd "$work/clone" && "$python" -m hatchling build -d "$dist")
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work" "$dist"/*.tar.gz
cmp "$dist"/*.whl "$work"/*.whl # the sdist makes the same wheel

"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$(echo "$dist"/*.whl)[pipelines]"
mkdir "$work/empty"
cd "$work/empty"
export PATH=$work/venv/bin:$PATH
set -x
python -c "import qhw_diffusion"
qhw --help > help.txt
qhw devices --fake > devices.txt
qhw demo --quick
test -s runs/demo/report.html
qhw train guidance --out runs/mine --method pathwise
qhw evaluate guidance runs/mine --device fake_torino --engine shots:1024+readout
