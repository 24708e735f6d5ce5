#!/bin/sh
# setup.sh VENV REQUIREMENTS [PYTHON]: a virtual environment with the requirements installed.
# Says in a sentence what is missing and how to get it.
set -eu
venv=$1 requirements=$2 wanted=${3:-}

is_supported() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

if [ ! -x "$venv/bin/python" ]; then
    python=
    for candidate in $wanted python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 && is_supported "$candidate"; then
            python=$candidate
            break
        fi
        if [ "$candidate" = "$wanted" ]; then
            echo "setup: PYTHON=$wanted is not a Python from 3.11 to 3.13." >&2
            exit 1
        fi
    done
    if [ -z "$python" ]; then
        found=$(python3 --version 2>/dev/null || echo "no python3")
        echo "setup: Stepwise needs Python 3.11 to 3.13 (found: $found)." >&2
        echo "       Debian, Ubuntu: apt-get install python3 python3-venv;  macOS: brew install python@3.12" >&2
        echo "       Another place: make setup PYTHON=/path/to/python3.12" >&2
        exit 1
    fi
    echo "setup: virtual environment in $venv with $("$python" --version)"
    if ! "$python" -m venv "$venv" >"$venv.log" 2>&1; then
        cat "$venv.log" >&2
        rm -rf "$venv" "$venv.log"
        echo "setup: python could not make a virtual environment. Debian, Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
    rm -f "$venv.log"
fi
echo "setup: installing $requirements (about 3 GB on disk; the first time takes minutes)"
if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements"; then
    echo "setup: pip could not install $requirements; its message is above." >&2
    echo "       Without a network: pip install --no-index --find-links FOLDER -r $requirements" >&2
    exit 1
fi
