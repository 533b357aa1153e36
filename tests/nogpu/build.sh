#!/usr/bin/env bash
# Builds the folder that count.py needs (3 GB; x86-64, Python 3.11 or later, c++): a CUDA build of PyTorch without
# NVIDIA's libraries, and cuda.cpp in their place.
#
#     bash tests/nogpu/build.sh FOLDER
#     LD_LIBRARY_PATH=FOLDER/lib FOLDER/venv/bin/python tests/nogpu/count.py
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${1:?a folder}"
folder=$(cd "$1" && pwd)
python3 -m venv "$folder/venv"
pip="$folder/venv/bin/python -m pip -q --disable-pip-version-check"
# without dependencies: NVIDIA's libraries are replaced
[ -d "$folder/wheels" ] || $pip download --no-deps --only-binary=:all: -d "$folder/wheels" torch==2.11.0 triton==3.6.0 nvidia-cuda-runtime==13.0.96
$pip install --no-deps "$folder"/wheels/{torch,triton}-*.whl
# only the headers of the runtime itself
python3 -m zipfile -e "$folder"/wheels/nvidia_cuda_runtime-*.whl "$folder/headers"
grep -vE '^(torch|mani-skill2|sapien)==' "$here/../../requirements.txt" >"$folder/requirements.txt"
$pip install --no-deps -r "$folder/requirements.txt"

site=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
includes=(-I"$folder/headers/nvidia/cu13/include" -I"$site/triton/backends/nvidia/include")
cd "$folder"
c++ -std=c++17 -O1 -fPIC "${includes[@]}" -c "$here/cuda.cpp" -o cuda.o
# every other NVIDIA function that PyTorch or Triton references
{
  nm -D --undefined-only "$site"/torch/lib/*.so | awk '{print $2}' | sed 's/@.*//'
  grep -oE '\<cu[A-Z][A-Za-z0-9]*\(' "$site/triton/backends/nvidia/driver.c" | tr -d '('
} | sort -u | grep -E '^(cu[A-Z]|cuda[A-Z]|__cuda|cudnn|cublas|cusparse|cufft|curand|cusolver|cupti|nccl|nvrtc|nvshmem)' >wanted
nm cuda.o | awk '$2 == "T" {print $3}' | sort >there
comm -23 wanted there | sed 's/.*/int &() { return 0; }/' >rest.c
cc -w -fPIC -c rest.c -o rest.o
mkdir -p lib
c++ -shared cuda.o rest.o -o lib/libnogpu.so -ldl -lpthread
libraries=$(for f in "$site"/torch/lib/*.so; do objdump -p "$f"; done | awk '/NEEDED/ {print $2}' |
  grep -E '^lib(cu|nccl|nvrtc|nvshmem)' | sort -u)
for name in $libraries libcuda.so; do ln -sf libnogpu.so "lib/$name"; done
