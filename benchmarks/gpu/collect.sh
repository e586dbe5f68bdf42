#!/bin/sh
# Fills benchmarks/gpu/wheels with what lora-c needs on a machine without a network.
#
# Usage: benchmarks/gpu/collect.sh PYTHON_VERSION [WHAT...]    such as 3.12, and nvidia-cublas where there is no CUDA toolkit's
#
# PYTHON: who downloads (python3). PLATFORMS: of the other machine (manylinux of glibc 2.28 and older, x86-64).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
version=$1
shift
PYTHON=${PYTHON:-python3}
PLATFORMS=${PLATFORMS:-manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux_2_5_x86_64 manylinux1_x86_64}

# What pyproject.toml asks for: to build and to run.
needs=$("$PYTHON" - "$here/../../pyproject.toml" <<'END'
import sys
from pip._vendor import tomli

with open(sys.argv[1], "rb") as file:
    project = tomli.load(file)
print("\n".join(project["build-system"]["requires"] + project["project"]["dependencies"]))
END
)
mkdir -p "$here/wheels"
platforms=$(for platform in $PLATFORMS; do printf -- '--platform %s ' "$platform"; done)
# shellcheck disable=SC2086  # platforms are words
printf '%s\n' "$needs" wheel pip "$@" > "$here/wheels/needs.txt"
"$PYTHON" -m pip download --quiet --only-binary=:all: --implementation cp --python-version "$version" $platforms \
    --dest "$here/wheels" --requirement "$here/wheels/needs.txt"
echo "$(ls "$here"/wheels/*.whl | wc -l) wheels for Python $version, $(du -sh "$here/wheels" | cut -f1)"
