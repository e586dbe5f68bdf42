#!/bin/sh
# Builds lora-c on a GPU machine without a network and measures it, part by part: correctness first, then speed, then peers.
#
# Usage: benchmarks/gpu/run.sh [--again] [--tiny] [--build] [PART...]
#   PART   devices wrappers ops sanitizer golden kernels bench-1b bench-8b bench-70b bench-175b decode-8b peers; all where none is named
#   --again   also those whose result is there; --tiny   sizes that an emulated device can do; --build   nothing but building
#
# Environment: DEVICE (cuda; fake or shim for a trial without a GPU), PYTHON (python3, >= 3.10 with its headers), RESULTS (where results
# go), WHEELS (what collect.sh filled), PEERS_PYTHON (who has transformers, PEFT, bitsandbytes), COMMIT (where there is no git).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
DEVICE=${DEVICE:-cuda}
PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-$here/wheels}
again= tiny= build= parts=
for word in "$@"; do
    case $word in
    --again) again=1 ;;
    --tiny) tiny=1 ;;
    --build) build=1 ;;
    -*) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;;
    *) parts="$parts $word" ;;
    esac
done
RESULTS=${RESULTS:-$here/results${tiny:+/tiny}}
[ -n "$parts" ] || parts="devices wrappers ops sanitizer golden kernels bench-1b bench-8b bench-70b bench-175b decode-8b peers"
[ -z "$tiny" ] || parts=$(echo "$parts" | sed 's/bench-1b bench-8b bench-70b bench-175b/bench-1b/')

case $(command -v "$PYTHON") in "") echo "PYTHON: expected a Python >= 3.10, got none ($PYTHON)"; exit 1 ;; esac
cd "$root"
tag=$("$PYTHON" -c 'import sys; print(sys.implementation.cache_tag)')
site=$root/build/gpu/$tag

# --- building --------------------------------------------------------------------------------------------------------------------

install() { # pip of this Python, else the one among the wheels
    if "$PYTHON" -m pip --version >/dev/null 2>&1; then
        "$PYTHON" -m pip install --quiet --no-index --disable-pip-version-check --upgrade --target "$site" "$@"
    else
        set -- "$(ls "$WHEELS"/pip-*.whl | tail -1)" "$@"
        pip=$1
        shift
        PYTHONPATH=$pip${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" -m pip install --quiet --no-index --disable-pip-version-check --upgrade \
            --target "$site" "$@"
    fi
}

build_package() {
    stamp=$site/.built-for-$DEVICE
    if [ -f "$stamp" ] && [ -z "$(find lora_c python/lora_c tools setup.py pyproject.toml -newer "$stamp" ! -name '*.pyc' ! -name '*.so' -type f | head -1)" ]; then
        return
    fi
    echo "building for $DEVICE with $("$PYTHON" --version), into $site"
    mkdir -p "$site"
    case $DEVICE in cuda*) ;; *) export LORA_C_CUDA=0 ;; esac
    export PYTHONPATH="$site"
    if ls "$WHEELS"/*.whl >/dev/null 2>&1; then
        install --find-links "$WHEELS" setuptools wheel numpy
        install --find-links "$WHEELS" --no-build-isolation .
    else # what this Python has itself
        install --no-deps --no-build-isolation . >build/gpu/pip.log 2>&1 || {
            tail -5 build/gpu/pip.log
            echo "PYTHON: expected one with setuptools >= 77 and what lora-c imports, or wheels of those in $WHEELS (benchmarks/gpu/collect.sh)"
            exit 1
        }
    fi
    case $DEVICE in cuda*) [ -f "$backend" ] || return 0 ;; esac # the next run tries again
    touch "$stamp"
}

build_programs() {
    programs="build/release/check build/release/bench_device build/release/liblora_c_fake.so build/release/liblora_c_other_abi.so"
    [ "$DEVICE" != shim ] || programs="$programs build/release/liblora_c_shim.so build/release/wrappers"
    # shellcheck disable=SC2086  # targets are words
    make MAKEFLAGS="-j$(nproc)" --no-print-directory $programs WERROR= >"$root/build/gpu/make.log" 2>&1 || {
        tail -20 "$root/build/gpu/make.log"
        exit 1
    }
}

begin=$(date +%s)
mkdir -p build/gpu
case $DEVICE in
cuda*) backend=$site/lora_c/liblora_c_cuda.so ;;
*) backend=$root/build/release/liblora_c_${DEVICE%%:*}.so && export LORA_C_BACKENDS="$backend" ;;
esac
build_package
build_programs
echo "built in $(($(date +%s) - begin)) s"
[ -f "$backend" ] || { echo "expected the plug-in $backend, got none: does nvidia-smi list a GPU, is CUDA 13's nvcc on the PATH?"; exit 1; }
[ -z "$build" ] || exit 0

# --- running ---------------------------------------------------------------------------------------------------------------------

export PYTHONPATH="$site" PYTHONDONTWRITEBYTECODE=1
failed=
for part in $parts; do
    out=$RESULTS/$part.json
    if [ -z "$again" ] && grep -q '^ "ok": true' "$out" 2>/dev/null; then
        echo "$part: there already ($out)"
        continue
    fi
    echo "--- $part"
    "$PYTHON" "$here/run_part.py" "$part" --out "$out" --device "$DEVICE" --backend "$backend" ${tiny:+--tiny} && continue
    failed="$failed $part"
    [ "$part" != wrappers ] || { echo "stopped: an instruction is not what the kernels and their tests take it for"; break; }
done
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
