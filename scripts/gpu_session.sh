#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that a machine with a GPU is for, in one go: build for that GPU, run the whole suite on it, check
# memory accesses, measure. Needs torch (CUDA build), the CUDA toolkit and pytest; no network.
#   bash scripts/gpu_session.sh [OUTPUT_DIRECTORY]
# CIFAR10=PATH (a packed file, or torchvision's folder) adds the comparison of all methods at the end. It stops after
# SWEEP_MINUTES (25) and goes on where it was when it is started again; ONLY=sweep leaves out all before it.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-benchmarks/results/gpu}")
mkdir -p "$out"
exec > >(tee "$out/log.txt") 2>&1

step() {
    printf '\n==> %s   [%d s]\n' "$*" "$SECONDS"
    "$@" || failures+=("$*")
}
failures=()

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || echo "no nvidia-smi: a rehearsal"
if [[ -z ${TORCH_CUDA_ARCH_LIST:-} ]]; then
    TORCH_CUDA_ARCH_LIST=$(python3 -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || unset TORCH_CUDA_ARCH_LIST
    export TORCH_CUDA_ARCH_LIST
fi
DYNPRUNE_CUDA=1 python3 -m pip install -q --no-build-isolation --no-deps -e .

check_and_measure() {
    step env FAIL_WITHOUT_CUDA=1 python3 -m pytest -q --ignore=tests/emulator --ignore=tests/benchmarks/test_train.py \
        --ignore=tests/benchmarks/test_reproduce.py
    if command -v compute-sanitizer > /dev/null; then
        step compute-sanitizer --error-exitcode 1 python3 -m pytest -q -x -k "cuda and not statistics" \
            tests/functional/test_selection.py tests/functional/test_update_scores.py
    fi
    step python3 -m benchmarks.selection.bench_selection --device cuda --out "$out"
    step python3 -m benchmarks.selection.bench_selection --device cuda --parts ops --num-samples 1e9 --rounds 3 --out "$out/1e9"
    for dtype in float32 bfloat16; do
        step python3 -m benchmarks.scoring.bench_scoring --device cuda --dtype $dtype --out "$out/bench_scoring_$dtype.json" \
            --shapes 512x10 512x100 1024x1000 4096x32768 8192x128256
    done
}

[[ ${ONLY:-} == sweep ]] || check_and_measure
if [[ -n ${CIFAR10:-} ]]; then
    step python3 -m benchmarks.sweep.reproduce benchmarks/sweep/configs/cifar10_one_gpu.toml --data-root "$CIFAR10" \
        --minutes "${SWEEP_MINUTES:-25}" --out "$out/reproduce"
fi
if ((${#failures[@]})); then
    printf 'FAILED: %s\n' "${failures[@]}"
    exit 1
fi
