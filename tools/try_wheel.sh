#!/bin/sh
# try_wheel.sh PYTHON FOLDER: installs the wheel of FOLDER for this interpreter into an environment of its own, and tries it.
# PIP names the pip that installs where the interpreter has none.
set -e
python=$1 folder=$2
pip=${PIP:-$python -m pip}
own=$(mktemp -d)
trap 'rm -rf "$own"' EXIT
"$python" -m venv --without-pip "$own/venv"
$pip --python "$own/venv/bin/python" install --quiet --only-binary lora-c --no-index --find-links "$folder" --no-deps lora-c
case $("$own/venv/bin/python" -VV) in
*free-threading*) needs="numpy ml_dtypes pytest pytest-timeout packaging" ;; # lora-c needs tokenizers, of which there is no wheel
*) needs="lora-c pytest pytest-timeout packaging safetensors" ;;
esac
$pip --python "$own/venv/bin/python" install --quiet $needs
"$own/venv/bin/python" "$(dirname "$0")/check_wheel.py"
