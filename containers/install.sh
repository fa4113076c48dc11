#!/usr/bin/env bash
# Install what this package needs, at the versions of constraints.txt, around a torch that is already there.
# Further arguments go to pip; containers are built without any, a test adds --dry-run.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python containers/requirements.py constraints > "$folder/constraints.txt"
python containers/requirements.py needed > "$folder/needed.txt"
python -m pip install --no-cache-dir --constraint "$folder/constraints.txt" --requirement "$folder/needed.txt" "$@"
