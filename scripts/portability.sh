#!/bin/sh
# portability.sh BIN: exports of this TensorFlow, run in that of the newest TensorFlow Serving.
# Stock TensorFlow Serving 2.20.0 is the newest release: the same C++ loader and kernels as below.
set -eu
bin=$1 venv=.venv-portability
if [ ! -f "$venv/.done" ]; then
    echo "portability: virtual environment in $venv with TensorFlow 2.20"
    "$bin/python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "tensorflow-cpu==2.20.0"
    # Its requirement is the package "tensorflow", which would be installed a second time.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "tensorflow-text==2.20.1"
    touch "$venv/.done"
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$bin/python" tests/end_to_end/brief_exports.py "$folder"
"$venv/bin/python" tests/end_to_end/replay_golden.py "$folder"/exports/*/*
