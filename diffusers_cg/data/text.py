"""What users wrote, where it becomes a part of Markdown."""

import re


SPECIAL = re.compile(r"[\\`*\[\]<>#|~&$]|(?<![^\W_])_|_(?![^\W_])")  # within a word _ is itself


def in_markdown(text: object) -> str:
    """Text that reads as it is in a line, a table's cell or a heading of Markdown: no markup, no HTML, one line."""
    line = " ".join(str(text).split()).encode("utf-8", "backslashreplace").decode()
    return SPECIAL.sub(lambda found: f"\\{found[0]}", line)
