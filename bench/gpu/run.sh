#!/usr/bin/env bash
# One call on a machine with an NVIDIA GPU, under 10 minutes: builds for that GPU, checks every kernel
# against float64, times it beside PyTorch and the device's own copy and matmul rates, and writes
# bench/results/<device>/<date>.json. Nothing is written that did not run.
#
#   bash bench/gpu/run.sh [--quick] [--only NAME]
#
# VARLEN_BENCH_PYTHON names the Python that has PyTorch; without PyTorch its rows are left out.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! nvidia-smi --query-gpu=name,driver_version --format=csv,noheader; then
  echo 'bench/gpu/run.sh: no NVIDIA GPU answers here; nothing was measured' >&2
  exit 1
fi
build=build-cmake/gpu
VARLEN_CUDA=ON VARLEN_CUDA_ARCHS=local node scripts/build-native.cjs --out "$build/build/Release"
VARLEN_PREBUILD="$PWD/$build" exec npx tsx bench/gpu/run.ts "$@"
