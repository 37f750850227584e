# SPDX-License-Identifier: Apache-2.0
"""Settings of the documentation site; `make docs` builds it into build/docs."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = re.compile(r"\bdocs/([\w/]+)\.md\b")
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from check_language import SECTION  # noqa: E402

from dynprune_cuda import __version__  # noqa: E402

project = "dynprune_cuda"
author = "the dynprune_cuda authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns: list[str] = []
default_role = "py:obj"  # docstrings write code as Markdown does, in single backticks

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
myst_url_schemes = ("http", "https", "mailto")

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
autoclass_content = "both"
autodoc_preserve_defaults = True
autodoc_mock_imports = [
    name for name in ("accelerate", "lightning", "transformers") if find_spec(name) is None
]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"dynprune_cuda {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_copyright = False
pygments_style = "tango"
pygments_dark_style = "monokai"
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True


def mark_code(app, what, name, obj, options, lines: list[str]) -> None:
    """Turns an indented block of a docstring into a code block, as Markdown reads it."""
    marked: list[str] = []
    in_section = in_code = False
    for line in lines:
        is_indented = line.startswith(" ")
        if line and not is_indented:
            in_code, in_section = False, bool(SECTION.match(line))
        elif is_indented and not in_section and not in_code and (not marked or not marked[-1]):
            marked += [".. code-block:: python", ""]
            in_code = True
        marked.append(line if in_code else as_rst(line))
    lines[:] = marked


def as_rst(line: str) -> str:
    """Escapes the bars of |g|, a norm, and links the pages that are named; not in backticks."""
    parts = line.split("`")
    for i in range(0, len(parts), 2):
        parts[i] = PAGE.sub(r":doc:`/\1`", parts[i].replace("|", "\\|"))
    return "`".join(parts)


def skip_tuple_fields(app, what, name, obj, skip: bool, options) -> bool | None:
    """Leaves out "Alias for field number 0": the class documents its fields."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def setup(app) -> None:
    """Registers what this file adds."""
    app.connect("autodoc-process-docstring", mark_code, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip_tuple_fields)
