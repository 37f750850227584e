# SPDX-License-Identifier: Apache-2.0
"""Applies a unified diff by its context, wherever the lines are."""

import re

HUNK = re.compile(r"^@@ -(\d+),\d+ \+\d+,\d+ @@.*\n((?:[-+ ].*\n|\n)+)", re.M)


def apply(diff: str, text: str) -> str:
    """Returns `text` with the hunks of `diff`, each of which must fit at exactly one place."""
    hunks = HUNK.findall(diff)
    assert hunks
    for _, body in hunks:
        lines = body.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if not line.startswith("+"))
        after = "".join(line[1:] for line in lines if not line.startswith("-"))
        places = [match.start() for match in re.finditer("^" + re.escape(before), text, re.M)]
        assert len(places) == 1, (before, places)
        text = text[: places[0]] + after + text[places[0] + len(before) :]
    return text
