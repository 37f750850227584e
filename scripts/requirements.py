# SPDX-License-Identifier: Apache-2.0
"""Prints the requirements of the extras named as arguments.

pip installs extras only together with the project, but lint needs its tools before that builds.
"""

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
for extra in sys.argv[1:]:
    print("\n".join(project["optional-dependencies"][extra]))
