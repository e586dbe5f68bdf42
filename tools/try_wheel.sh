#!/bin/sh
# try_wheel.sh PYTHON FOLDER: installs the wheel of FOLDER for this interpreter into an environment of its own, and tries it.
set -e
python=$1 folder=$2
own=$(mktemp -d)
trap 'rm -rf "$own"' EXIT
"$python" -m venv "$own/venv"
"$own/venv/bin/pip" install --quiet --only-binary lora-c --no-index --find-links "$folder" --no-deps lora-c
"$own/venv/bin/pip" install --quiet lora-c pytest pytest-timeout packaging
"$own/venv/bin/python" "$(dirname "$0")/check_wheel.py"
