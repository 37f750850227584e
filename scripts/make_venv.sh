#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Creates the virtual environment $2 with the Python $1, or says what is missing.
set -eu
python=$1 venv=$2
missing=$(sh "$(dirname "$0")/prerequisites.sh" "$python")
if [ -n "$missing" ]; then
    echo "Missing on this machine. On Debian or Ubuntu: apt-get install" $missing >&2
    exit 1
fi
if "$python" -c 'import ensurepip' 2> /dev/null; then
    "$python" -m venv "$venv"
elif "$python" -c 'import virtualenv' 2> /dev/null; then
    "$python" -m virtualenv --quiet "$venv"
else
    # pip without ensurepip: virtualenv, kept out of the system, brings its own copy of pip.
    borrowed=$(mktemp -d)
    trap 'rm -rf "$borrowed"' EXIT
    "$python" -m pip install --quiet --target "$borrowed" virtualenv
    PYTHONPATH=$borrowed "$python" -m virtualenv --quiet "$venv"
fi
