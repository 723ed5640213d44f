"""MkDocs hook: $…$ and $$…$$ become MathML, which browsers show without scripts or downloads."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

# Code is left alone: fenced blocks and `inline` are matched first and returned as they are.
_CODE_OR_MATH = re.compile(r"(```.*?```|`[^`\n]+`)|\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def _mathml(found: re.Match[str]) -> str:
    code, display, inline = found.groups()
    if code is not None:
        return str(code)
    if display is not None:
        return f'<div class="math">{convert(display.strip(), display="block")}</div>'
    # In a span: a line that begins with <math> would count as an HTML block and end the paragraph.
    return f"<span>{convert(inline)}</span>"


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _CODE_OR_MATH.sub(_mathml, markdown)
