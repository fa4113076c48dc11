#!/usr/bin/env bash
# Transformer Engine for a machine without a GPU: tests/gpu_path/install.sh PYTHON FOLDER [REQUIREMENTS]
# Fills FOLDER with its wheels, for PYTHONPATH, and FOLDER/cuda with libraries that stand in for CUDA's (fake_gpu.c).
set -euo pipefail
python=$1 folder=$2
here=$(cd "$(dirname "$0")" && pwd)
requirements=${3:-$here/requirements.txt}
mkdir -p "$folder/cuda"
"$python" -m pip install --quiet --no-deps --upgrade --target "$folder" --requirement "$requirements"

# Every function that the library expects of CUDA's libraries; those that fake_gpu.c has itself win over these.
library=$folder/transformer_engine/wheel_lib/libtransformer_engine.so
nm -D --undefined-only "$library" |
  sed -nE 's/^ +[Uw] ((__)?(cu[a-z]+|nvrtc|nccl)[A-Z][A-Za-z0-9_]*)(@.*)?$/__attribute__((weak)) int \1(void) { return 801; }/p' |
  sort -u >"$folder/cuda/rest.c"

build() { gcc -shared -fPIC -O1 -w -Wl,-soname,"$1" -o "$folder/cuda/$1" "${@:2}"; }
build libcudart.so.13 "$here/fake_gpu.c" "$folder/cuda/rest.c"
# the others only have to be there: libtransformer_engine.so names them, and its Python looks for three without numbers
needed=$(readelf -d "$library" | sed -nE 's/.*NEEDED.*\[(lib(cu|nv|nccl)[^]]*)\]/\1/p')
for name in $needed lib{cudnn,nvrtc,curand}.so; do
  [ "$name" = libcudart.so.13 ] || build "$name" -xc /dev/null
done
