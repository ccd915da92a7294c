"""Code and commands that the documentation prints."""

from __future__ import annotations

import re

from places import ROOT


def blocks(language: str) -> list[str]:
    """Those of docs/extend.md that are files or commands to be run as they stand."""
    text = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [block for block in found if language != "python" or re.match(r"# \S+\.py\n", block)]
