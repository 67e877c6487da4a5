# SPDX-License-Identifier: GPL-2.0-only
"""Text that may say anything, so that nothing obeys it. Pure."""

from __future__ import annotations


def visible(text: str) -> str:
    """A text with all that a terminal would obey, or not show, as escapes; lines and tabs stay.

    What a guest says may be anything, and rich leaves ESC as it is.
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def escaped(text: str) -> str:
    """A text of which nothing is Markdown's markup."""
    return "".join("\\" + char if char in "\\`*_|<>[]#~&$" else char for char in visible(text))
