# SPDX-License-Identifier: Apache-2.0
"""The checker of the language: what it counts as a sentence, and what it finds."""

import check_language as language
import language_sources as sources
import pytest

LONG = "One " + "more " * 23 + "word."  # 25 words
TOO_LONG = "One " + "more " * 24 + "word."


def page(text):
    return [str(one) for one in language.judged("page.md", language.markdown_blocks(text))]


def docstring(text):
    return [str(one) for one in language.judged("a.py", language.docstring_blocks(text), 10)]


def test_a_sentence_may_have_25_words():
    assert page(LONG) == []
    (found,) = page(f"Short.\n\n{LONG} {TOO_LONG}")
    assert found.startswith("page.md:3: 26 words, more than 25: One more")


@pytest.mark.parametrize(
    "text",
    [
        f"{LONG} And so on.",
        f"{LONG} `code` begins here.",
        "One " + "more " * 22 + "(e.g. Here).",
        f"- {LONG}\n- {LONG}",
        f"# {LONG}\n{LONG}",
        f"| {LONG} | {LONG} |",
        f"```python\n{TOO_LONG} nobody\n```",
        f"<!-- {TOO_LONG} -->",
        f"Text.\n\n    code {TOO_LONG}\n    code\n\nText.",
        "One " + "more " * 22 + "`a b c d` [one](https://a.b/c).",
        "```{glossary}\n" + f"term\n  {LONG}\n\nterm\n  {LONG}\n```",
        f"```{{include}} a.md\n:option: {TOO_LONG}\n```",
    ],
)
def test_these_are_no_long_sentences(text):
    assert page(text) == []


@pytest.mark.parametrize(
    "text",
    [
        f"- {TOO_LONG}",
        f"1. {TOO_LONG}",
        f"- One\n    {TOO_LONG}",
        f"| a | {TOO_LONG} |",
        f"```{{note}}\n{TOO_LONG}\n```",
        f"term\n: {TOO_LONG}",
        f"**Bold.** {TOO_LONG}",
        TOO_LONG.replace("more ", "more\n", 3),
    ],
)
def test_these_are(text):
    assert len(page(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "The ranks meet there.",
        "Nobody reads it.",
        "It asks for a number.",
        "Each call enters scores.",
        "It is turned round.",
        "As there.",
        "As there, but larger.",
        "It enters the samples' scores.",
        "Scores that were entered on purpose.",
        "All is undone: it is undone on all ranks.",
    ],
)
def test_metaphors(text):
    (found,) = page(text)
    assert "is indirect" in found
    assert len(docstring(text)) == 1


def test_words_that_contain_a_banned_one_are_allowed():
    assert page("A method of a parameter, in metres; `nobody` is a name.") == []


def test_docstrings_have_entries_and_code():
    text = f"""Returns it.

        code = {TOO_LONG}

    Args:
        a: {LONG}
        b (int): {LONG}
            {TOO_LONG}

    Raises:
        ValueError: {LONG}
    """
    (found,) = docstring(text)
    assert found.startswith("a.py:16: 26 words")


def test_docstrings_of_a_module_are_found():
    source = (
        '"""Module."""\nclass A:\n    """Class."""\n    def f(self):\n        """Function."""\n'
    )
    assert [text for _, text in sources.docstrings(source)] == ["Module.", "Class.", "Function."]
    assert [line for line, _ in sources.docstrings(source)] == [1, 3, 5]


def test_messages_are_found():
    source = """
TEXT = "a constant"
def check(x):
    if x:
        raise ValueError(f"x must be 0, "
                         f"got {x}: leave it out")
    warnings.warn(TEXT, UserWarning)
    warnings.warn(message)
    return TypeError("made here")
def about_x(x):
    if not x:
        return None
    text = f"of {x}"
    return text
"""
    found = sorted(sources.messages(source))
    assert found == [
        (2, "a constant"),
        (5, "x must be 0, got {}: leave it out"),
        (9, "made here"),
        (13, "of {}"),
    ]


def test_comments_of_python_are_paragraphs():
    source = """# SPDX-License-Identifier: none
# One line,
# and another. none of these.
a = "# no comment"  # behind code
b = 1  # also behind code
#   indented = code
# - an item

# noqa
# With y = a * b + 1 and more of [B, C].
"""
    assert list(sources.python_comments(source)) == [
        (2, "One line, and another. None of these."),
        (4, "behind code"),
        (5, "also behind code"),
        (7, "- an item"),
        (10, "With `formula` and more of `shape`."),
    ]


def test_comments_of_cpp_are_paragraphs():
    source = """// One line,
// and another.
const char* x = "// no comment";  // behind code,
                                  // continued
int y;                            // of another
/* A block
 * goes on. */
// name: begins an entry
"""
    assert list(sources.cpp_comments(source)) == [
        (1, "One line, and another."),
        (3, "behind code, continued"),
        (5, "of another"),
        (6, "A block goes on."),
        (8, "name: begins an entry"),
    ]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a.py", f"# {TOO_LONG}"),
        ("a.py", f'raise ValueError("{TOO_LONG}")'),
        ("a.py", f'"""{TOO_LONG}"""'),
        ("a.cuh", f"// {TOO_LONG}"),
    ],
)
def test_long_sentences_of_sources_are_found(name, source, tmp_path):
    path = tmp_path / name
    path.write_text(source + "\n")
    (found,) = language.check(path)
    assert found.line == 1 and found.reason.startswith("26 words")
    path.write_text(source.replace(TOO_LONG, LONG) + "\n")
    assert language.check(path) == []


def test_exceptions_must_be_needed():
    found = [language.Finding("a.md", 1, "One two", "r"), language.Finding("b.md", 1, "Three", "r")]
    allowed = language.exceptions("# why\na.md: One\nb.md   # not yet\nc.md\na.md: Four\n")
    assert allowed == [("a.md", "One"), ("b.md", ""), ("c.md", ""), ("a.md", "Four")]
    assert language.without_exceptions(found, allowed) == ([], ["c.md", "a.md: Four"])
    assert language.without_exceptions(found, []) == (found, [])


def test_the_pages_and_the_package_are_checked():
    names = {path.relative_to(language.ROOT).as_posix() for path in language.checked_files()}
    assert {"README.md", "CHANGELOG.md", "docs/quickstart.md", "dynprune_cuda/stats.py"} <= names
    folders = {name.split("/")[0] for name in names}
    assert folders >= {"dynprune_cuda", "csrc", "scripts", "benchmarks", "examples"}
