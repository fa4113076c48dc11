#!/usr/bin/env bash
# Install the wheels beside this script into one folder, next to this machine's own torch, without a network:
#   ./install.sh FOLDER && export PYTHONPATH=FOLDER
# Parts may come one by one: each has this script. Then, from the repository: python -m launch.cli doctor
set -euo pipefail
folder=${1:?name the folder to install into}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$version" != "@PYTHON@" ]; then
  echo "these wheels are for Python @PYTHON@, and $python is $version: set PYTHON, or bundle for $version." >&2
  exit 1
fi
if ! "$python" -c 'import torch' 2>/dev/null; then
  echo "torch is missing: install the one that fits this machine's GPU first." >&2
  exit 1
fi
find "$here" -name '*.whl' -print0 | sort -z | xargs -0 "$python" -m pip install --quiet --no-index --no-deps \
  --no-compile --upgrade --target "$folder"
echo "installed $(find "$here" -name '*.whl' | wc -l) packages into $folder: export PYTHONPATH=$folder"
