#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Everything that a machine with a GPU is for, in two calls of at most 4 and 5.5 minutes, or in a sweep.
#   scripts/gpu_session.sh call1|call2|sweep [--rehearse] [OUT]
# call1 checks: smoke, tests, sanitizers. call2 measures: selection, step, ncu, accuracy. sweep compares all methods on
# CIFAR10=PATH (a packed file, or torchvision's folder) for SWEEP_MINUTES (25), and goes on where it was.
# What runs is build/gpu_bundle, made before by `make gpu-bundle`; nothing is built or fetched here. Each step has a
# time-out, and one that fails stops nothing. OUT (default: benchmarks/results/gpu) gets the log and the rows while they
# are made, and a summary after each step: at most 8 files of a call, in no folder. --rehearse runs the same on a
# machine without a GPU, with small sizes on the CPU, and says what it left out.
set -uo pipefail
root=$(realpath "$(dirname "$0")/..")
usage() {
    sed -n '4,5p' "$root/scripts/gpu_session.sh" >&2
    exit 2
}

# ---- the steps. Each runs in a process of its own, by: gpu_session.sh step NAME. REHEARSE, OUT and WORK are set.

python() { command "$PYTHON" "$@"; }
skipped() { echo "skipped: $*"; }
on_gpu() { [[ $REHEARSE == 0 ]]; }
sanitized() { # the tool's report and its exit status, of one tool
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -k 5 55 compute-sanitizer --tool "$1" --error-exitcode 9 \
        "$PYTHON" scripts/gpu/launches.py > "$WORK/$1.txt" 2>&1
    echo "exit status $?" >> "$WORK/$1.txt"
}

step_machine() {
    if on_gpu; then
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
    else
        skipped "nvidia-smi: a rehearsal"
    fi
    python "$TREE/scripts/gpu/make_bundle.py" --check --out "$BUNDLE" || local stale=1
    local options=()
    if on_gpu; then options=(--gpu); fi
    python scripts/gpu/show_machine.py "${options[@]}" && [[ -z ${stale:-} ]]
}

step_smoke() {
    if on_gpu; then
        python scripts/gpu/smoke.py --jobs 15 --time-limit 35 --out "$OUT/smoke.jsonl"
    else
        skipped "the GPU, most ops, large sizes and shapes: the CPU is compared with itself"
        python scripts/gpu/smoke.py --device cpu --sizes 1e3 2e4 --shapes 64x10 --jobs 2 \
            --selections select_top_k --out "$OUT/smoke.jsonl"
    fi
}

tests() {
    local options=(-q -p no:benchmark -p no:cacheprovider -m needs_cuda --continue-on-collection-errors)
    if on_gpu; then
        FAIL_WITHOUT_CUDA=1 python -m pytest "${options[@]}" "$@"
    else
        skipped "the tests themselves: without a GPU each is collected and then skipped"
        python -m pytest "${options[@]}" "$@"
    fi
}

step_test_cuda() { tests tests/functional/test_cuda.py; }

step_cuda_tests() {
    local workers=(-n 6)
    if ! python -c 'import xdist' 2> /dev/null; then
        skipped "several workers: pytest-xdist is not installed"
        workers=()
    fi
    if on_gpu; then # torch.compile takes most of the step benchmark's time: its results stay on disk for call2
        timeout 80 "$PYTHON" -m benchmarks.scoring.bench_scoring --device cuda --dtype bfloat16 --rounds 1 --no-profile \
            --shapes "${SHAPES[@]}" > "$WORK/compile.txt" 2>&1 &
    fi
    tests "${workers[@]}" --ignore=tests/functional/test_cuda.py --ignore=tests/emulator --ignore=tests/integrations \
        --ignore=tests/project --ignore=tests/benchmarks/test_train.py --ignore=tests/benchmarks/test_reproduce.py tests
    local status=$?
    wait
    return $status
}

step_sanitizers() {
    if ! on_gpu; then
        skipped "compute-sanitizer: there is no GPU; only its script runs"
        python scripts/gpu/launches.py --device cpu
        return
    fi
    local tool tools=(memcheck racecheck synccheck initcheck)
    for tool in "${tools[@]}"; do sanitized "$tool" & done
    wait
    for tool in "${tools[@]}"; do
        echo "-- $tool"
        head -c 6000 "$WORK/$tool.txt"
        tail -n 3 "$WORK/$tool.txt"
    done
    for tool in "${tools[@]}"; do grep -q "exit status 0" "$WORK/$tool.txt" || return 1; done
}

# The command line of a benchmark on this machine: sizes and rounds, then what a rehearsal has instead.
selection() {
    if on_gpu; then
        python -m benchmarks.selection.bench_selection --device cuda --no-host-rivals --no-profile "$@"
    else
        skipped "the GPU, its graphs and large sizes: tiny sizes on the CPU"
        python -m benchmarks.selection.bench_selection --quick --num-samples 1000 --distributions-samples 1000 "$@"
    fi
}

step_selection() {
    local sizes=(--num-samples 1e6 1e7 1e8 --distributions-samples 1e6 1e8)
    on_gpu || sizes=()
    selection --parts ops distributions --rounds 9 "${sizes[@]}" --out "$OUT/selection.json"
}

# The other module with today's benchmarks: it needs the functions that they call, or the step fails.
with_base() {
    if [[ ! -d $BUNDLE/base ]]; then
        skipped "the commit to compare with: it is not in the bundle"
        return 1
    fi
    rm -rf "$WORK/base" && mkdir "$WORK/base" && cp -r benchmarks "$BUNDLE/base/dynprune_cuda" "$WORK/base" &&
        cd "$WORK/base" && export PYTHONPATH="$WORK/base:$SITE"
}

step_selection_base() {
    with_base || return 0
    local sizes=(--num-samples 1e6 1e8)
    on_gpu || sizes=()
    selection --parts ops --rounds 5 "${sizes[@]}" --out "$OUT/selection_base.json"
}

scoring() { # DTYPE FILE SHAPE...
    local dtype=$1 file=$2
    shift 2
    if on_gpu; then
        python -m benchmarks.scoring.bench_scoring --device cuda --dtype "$dtype" --rounds 30 --out "$OUT/$file" --shapes "$@"
    else
        skipped "the GPU, torch.compile, Liger and large shapes: small shapes on the CPU"
        python -m benchmarks.scoring.bench_scoring --dtype "$dtype" --rounds 2 --no-compile --out "$OUT/$file" --shapes 8x10
    fi
}

step_scoring_bfloat16() { scoring bfloat16 scoring_bfloat16.json "${SHAPES[@]}"; }
step_scoring_float32() { scoring float32 scoring_float32.json 512x10 4096x32768; }
step_scoring_base() {
    with_base || return 0
    if on_gpu; then
        python -m benchmarks.scoring.bench_scoring --device cuda --dtype bfloat16 --rounds 30 --no-compile --no-profile \
            --out "$OUT/scoring_base.json" --shapes "${SHAPES[@]}"
    else
        scoring bfloat16 scoring_base.json
    fi
}

step_ncu() {
    if ! on_gpu; then
        skipped "ncu: there is no GPU; only its script runs"
        python scripts/gpu/launches.py --device cpu --profile --samples 1000 --shapes 8x10
        return
    fi
    ncu --clock-control none --profile-from-start off --kernel-name-base demangled --kernel-name regex:dynprune \
        --section SpeedOfLight --section LaunchStats --section Occupancy --section WarpStateStats \
        --section MemoryWorkloadAnalysis \
        "$PYTHON" scripts/gpu/launches.py --profile --samples 1e8 --shapes 4096x1000 4096x32768
}

step_top_k_1e9() {
    if on_gpu; then
        selection --parts ops --ops "select_top_k, ascending" --no-rivals --num-samples 1e9 --rounds 5 \
            --out "$OUT/top_k_1e9.json"
    else
        selection --parts ops --ops "select_top_k, ascending" --no-rivals --out "$OUT/top_k_1e9.json"
    fi
}

step_accuracy() {
    if on_gpu; then
        python -m benchmarks.scoring.accuracy --device cuda --no-figure
    else
        skipped "the GPU: the accuracy of the CPU, without its figure"
        python -m benchmarks.scoring.accuracy --device cpu --no-figure
    fi
}

step_sweep() {
    if on_gpu; then
        python -m benchmarks.equal_steps.experiment benchmarks/equal_steps/configs/cifar10_one_gpu.toml \
            --device cuda --data-root "$CIFAR10" --minutes "${SWEEP_MINUTES:-8}" --out "$OUT/equal_steps"
    else
        skipped "the experiment: it needs a GPU; its options are read, and tests run it on the CPU"
        python -m benchmarks.equal_steps.experiment --help > /dev/null
    fi
}

SHAPES=(512x10 512x100 1024x1000 4096x32768 8192x128256)
if [[ ${1:-} == step ]]; then
    "step_$2"
    exit
fi

# ---- the plan: name and time-out in seconds of each step

call=${1:-}
case $call in
    call1) budget=240 plan=(machine=12 smoke=40 test_cuda=30 cuda_tests=98 sanitizers=60) ;;
    call2) budget=330 plan=(machine=12 selection=70 selection_base=22 scoring_bfloat16=85 scoring_float32=35
        scoring_base=20 ncu=58 top_k_1e9=15 accuracy=12) ;;
    sweep) budget=$((${SWEEP_MINUTES:-8} * 60 + 60)) plan=(machine=15 "sweep=$budget") ;;
    *) usage ;;
esac
shift
export REHEARSE=0 OUT=
for argument in "$@"; do
    case $argument in
        --rehearse) REHEARSE=1 ;;
        -*) usage ;;
        *)
            [[ -z $OUT ]] || usage
            OUT=$argument
            ;;
    esac
done
if [[ $REHEARSE == 1 ]]; then
    budget=$((budget * 4)) # the machine may be slow and busy; it is there to run everything
    export CUDA_VISIBLE_DEVICES=
    unset FAIL_WITHOUT_CUDA
fi
OUT=$(realpath -m "${OUT:-$root/benchmarks/results/gpu}")
mkdir -p "$OUT"
BUNDLE=$(realpath -m "${BUNDLE:-$root/build/gpu_bundle}")
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
export OUT WORK TREE=$root BUNDLE SITE="$WORK/site"
if [[ -z ${PYTHON:-} ]]; then
    PYTHON=python3
    [[ ! -x $root/.venv/bin/python ]] || PYTHON=$root/.venv/bin/python
fi
export PYTHON

# The tree with the bundle's package: its own, if there is one, may be built for another machine.
tree=$WORK/ours
mkdir "$tree" "$SITE"
cd "$root" || exit 1
cp -r benchmarks csrc docs examples scripts tests pyproject.toml setup.py CHANGELOG.md README.md "$tree"
if [[ -d $BUNDLE/ours ]]; then
    cp -r "$BUNDLE/ours/dynprune_cuda" "$tree"
    [[ ! -d $BUNDLE/site ]] || cp -r "$BUNDLE/site/." "$SITE"
elif [[ $REHEARSE == 1 ]]; then
    mkdir "$tree/dynprune_cuda"
    cp -r dynprune_cuda/*/ dynprune_cuda/*.py* dynprune_cuda/py.typed "$tree/dynprune_cuda"
    ln -s "$root"/dynprune_cuda/*.so "$tree/dynprune_cuda"
else
    echo "there is no $BUNDLE: run \`make gpu-bundle\` before" >&2
    exit 1
fi
cd "$tree" || exit 1
# Compiled results are kept between two calls to the same machine.
export PYTHONPATH="$tree:$SITE" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLBACKEND=Agg
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-/tmp/gpu_session_inductor}" TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-/tmp/gpu_session_triton}"

log=$OUT/${call}_log.txt told=$OUT/${call}_summary.txt
: > "$log"
failed=0
summary=()
for entry in "${plan[@]}"; do
    name=${entry%=*} limit=${entry#*=}
    if [[ $REHEARSE == 1 ]]; then limit=$((limit * 4)); fi
    left=$((budget - SECONDS))
    if ((limit > left)); then limit=$left; fi
    printf '\n==> %s, at most %d s   [%d s]\n' "$name" "$limit" "$SECONDS" | tee -a "$log"
    begin=$SECONDS before=$(stat -c %s "$log")
    if ((limit < 3)); then
        result="FAIL (no time left)"
    else
        timeout -k 3 "$limit" bash "$root/scripts/gpu_session.sh" step "$name" >> "$log" 2>&1
        case $? in
            0) result=pass ;;
            124 | 137) result="FAIL (time-out)" ;;
            *) result=FAIL ;;
        esac
    fi
    [[ $result == pass ]] || failed=$((failed + 1))
    if [[ $result != pass ]]; then tail -c "+$((before + 1))" "$log" | tail -n 12 | cut -c -300; fi
    summary+=("$(printf '%-18s %-18s %4d s' "$name" "$result" $((SECONDS - begin)))")
    while read -r line; do summary+=("    $line"); done \
        < <(tail -c "+$((before + 1))" "$log" | grep '^skipped: ' | sort -u)
    printf '%s\n' "${summary[@]}" > "$told"
done
summary+=("$call: ${#plan[@]} steps, $failed failed, $SECONDS s")
printf '%s\n' "${summary[@]}" > "$told"
echo
cat "$told"
((failed == 0))
