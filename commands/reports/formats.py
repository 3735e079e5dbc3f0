"""Formats of a report and its tables: plain text, Markdown, LaTeX, and the tables of the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import accumulate

from commands.reports.compare import Comparisons
from commands.reports.loaded_runs import Run
from commands.reports.tables import Table, first_answered, tables

COMMENTS = {"text": "{}\n", "markdown": "- {}\n", "latex": "% {}\n"}
# one translation: the replacements contain braces
LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    }
)


def in_lines(runs: Sequence[Run], comparisons: Comparisons, notes: Sequence[str], format: str) -> str:
    """Format a report as text, Markdown or LaTeX, with the notes and the refused comparisons below the tables."""
    write = WRITERS[format]
    parts = ["% needs \\usepackage{booktabs}\n"] if format == "latex" else []
    parts += [write(table) for table in tables(runs, comparisons)]
    base = first_answered(runs)
    refused = [why for (first, second), why in comparisons.refused.items() if first == base and runs[second].answers]
    if remarks := [*notes, *(f"not compared: {why}" for why in refused)]:
        parts.append("".join(COMMENTS[format].format(line) for line in remarks))
    return "\n".join(parts)


def text(table: Table) -> str:
    """Format a table with aligned columns for a terminal."""
    rows = [table.headings, *table.texts]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.headings))]

    def line(row: tuple[str, ...]) -> str:
        cells = zip(row, widths, table.numeric, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.title, "", line(rows[0]), rule, *map(line, rows[1:])]) + "\n"


def markdown(table: Table) -> str:
    """Format a table in GitHub's Markdown, escaped."""

    def line(cells: tuple[str, ...]) -> str:
        return f"| {' | '.join(cells)} |"

    def plain(cell: str) -> str:
        for sign in "\\`*_[]<>|":
            cell = cell.replace(sign, f"\\{sign}")
        return cell

    rule = line(tuple("---:" if numeric else "---" for numeric in table.numeric))
    rows = [line(tuple(map(plain, row))) for row in table.texts]
    return "\n".join([f"**{plain(table.title)}**", "", line(table.headings), rule, *rows]) + "\n"


def latex(table: Table) -> str:
    r"""Format a `table` environment for \input; needs \usepackage{booktabs}."""
    columns = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}", rf"\begin{{tabular}}{{{columns}}}"]
    lines.append(r"\toprule")
    if table.groups:
        ends = list(accumulate(count for _, count in table.groups))
        cells = (rf"\multicolumn{{{count}}}{{c}}{{{_latex(name)}}}" for name, count in table.groups)
        lines.append(" & ".join(cells) + r" \\")
        spans = [(end - count + 1, end) for (name, count), end in zip(table.groups, ends, strict=True) if name]
        lines.append(" ".join(rf"\cmidrule(lr){{{first}-{end}}}" for first, end in spans))
    lines += [_latex_row(table.headings, [False] * len(table.headings)), r"\midrule"]
    lines += [_latex_row(row, table.numeric) for row in table.texts]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def html(table: Table) -> str:
    """Format a `table` element; `data-value` holds the full number, by which the page sorts."""
    lines = ["<table>", f"<caption>{escape(table.title)}</caption>", "<thead>"]
    if table.groups:
        spans = (f'<th colspan="{count}">{escape(name)}</th>' for name, count in table.groups)
        lines.append(f'<tr class="groups">{"".join(spans)}</tr>')
    lines.append(f"<tr>{''.join(f'<th>{escape(heading)}</th>' for heading in table.headings)}</tr>")
    lines += ["</thead>", "<tbody>"]
    for row, texts in zip(table.rows, table.texts, strict=True):
        cells = []
        for cell, shown, right in zip(row, texts, table.numeric, strict=True):
            number = cell[0] if isinstance(cell, tuple) else cell
            place = ' class="number"' if right else ""
            value = f' data-value="{number!r}"' if isinstance(number, (int, float)) else ""
            cells.append(f"<td{place}{value}>{escape(shown)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"]) + "\n"


WRITERS = {"text": text, "markdown": markdown, "latex": latex, "html": html}


def _latex_row(cells: Sequence[str], numeric: Sequence[bool]) -> str:
    signs = (_latex(c).replace("-", "$-$") if number else _latex(c) for c, number in zip(cells, numeric, strict=True))
    row = " & ".join(signs) + r" \\"
    return f"{{}}{row}" if row[0] in "[*" else row  # else the \\ before it would read it as its argument


def _latex(cell: str) -> str:
    return cell.translate(LATEX)
