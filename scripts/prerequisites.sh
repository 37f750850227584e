#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prints the Debian packages that this machine lacks for a build with the Python given as $1, nothing if it has all.
set -eu
python=$1
if ! command -v "$python" > /dev/null; then
    echo "python3 python3-venv python3-dev"
    python=
fi
if [ -n "$python" ]; then
    "$python" - << 'END'
import importlib.util, os, sys, sysconfig

if sys.version_info < (3, 10):
    sys.exit("dynprune_cuda needs Python >= 3.10, this is " + sys.version.split()[0] + " (set PYTHON=...)")
# Any of these can make a virtual environment with pip in it: Debian packs ensurepip apart from Python.
if not any(importlib.util.find_spec(name) for name in ("ensurepip", "virtualenv", "pip")):
    print("python3-venv")
if not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print("python3-dev")
END
fi
command -v "${CXX:-g++}" > /dev/null || echo g++
