"""What `report` prints, and the cells of its tables."""

from __future__ import annotations

import re
from pathlib import Path

from commands.report import report


def cells(format: str, line: str) -> list[str]:
    """Return the cells of a row in a format, with `<` written out."""
    split = {
        "text": lambda: re.split(r" {2,}", line.strip()),
        "markdown": lambda: re.split(r" +\| +", line.strip("| \n")),
        "latex": lambda: re.split(r" +& +", line.strip(" \\")),
        "html": lambda: [cell.strip() for cell in re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", line)],
    }
    return [re.sub(r"\\<|\\ensuremath\{<\}|&lt;", "<", cell) for cell in split[format]()]


def printed(runs: list[Path], capsys) -> str:
    """Return what `report` prints of runs."""
    capsys.readouterr()
    report(list(map(str, runs)))
    said: str = capsys.readouterr().out
    return said
