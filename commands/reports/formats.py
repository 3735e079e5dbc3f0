"""Formats of a table: plain text, Markdown, LaTeX and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from commands.reports.tables import Table, show

# one translation: the replacements contain braces
LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    }
)


def text(table: Table) -> str:
    """Format a table with aligned columns for a terminal."""
    rows = [table.headings, *_texts(table)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.headings))]
    numeric = [_numeric(table, column) for column in range(len(table.headings))]

    def line(row: tuple[str, ...]) -> str:
        cells = zip(row, widths, numeric, strict=True)
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

    rule = line(tuple("---:" if _numeric(table, i) else "---" for i in range(len(table.headings))))
    rows = [line(tuple(map(plain, row))) for row in _texts(table)]
    return "\n".join([f"**{plain(table.title)}**", "", line(table.headings), rule, *rows]) + "\n"


def latex(table: Table) -> str:
    r"""Format a `table` environment for \input; needs \usepackage{booktabs}."""
    columns = "".join("r" if _numeric(table, i) else "l" for i in range(len(table.headings)))
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}", rf"\begin{{tabular}}{{{columns}}}"]
    lines.append(r"\toprule")
    if table.groups:
        spans, start = [], 1
        for name, count in table.groups:
            spans.append((name, start, start + count - 1))
            start += count
        cells = [rf"\multicolumn{{{end - first + 1}}}{{c}}{{{_latex(name)}}}" for name, first, end in spans]
        lines.append(" & ".join(cells) + r" \\")
        lines.append(" ".join(rf"\cmidrule(lr){{{first}-{end}}}" for name, first, end in spans if name))
    numeric = [_numeric(table, column) for column in range(len(table.headings))]
    rows = [_latex_row(table.headings, [False] * len(numeric)), *(_latex_row(row, numeric) for row in _texts(table))]
    lines += [rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def html(table: Table) -> str:
    """Format a `table` element; `data-value` holds the full number, by which the page sorts."""
    lines = ["<table>", f"<caption>{escape(table.title)}</caption>", "<thead>"]
    if table.groups:
        spans = (f'<th colspan="{count}">{escape(name)}</th>' for name, count in table.groups)
        lines.append(f'<tr class="groups">{"".join(spans)}</tr>')
    lines.append(f"<tr>{''.join(f'<th>{escape(heading)}</th>' for heading in table.headings)}</tr>")
    lines += ["</thead>", "<tbody>"]
    numeric = [_numeric(table, column) for column in range(len(table.headings))]
    for row, texts in zip(table.rows, _texts(table), strict=True):
        cells = []
        for cell, shown, right in zip(row, texts, numeric, strict=True):
            number = cell[0] if isinstance(cell, tuple) else cell
            place = ' class="number"' if right else ""
            value = f' data-value="{number!r}"' if isinstance(number, (int, float)) else ""
            cells.append(f"<td{place}{value}>{escape(shown)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"]) + "\n"


def _texts(table: Table) -> list[tuple[str, ...]]:
    return [tuple(show(cell, table.signed) for cell in row) for row in table.rows]


def _numeric(table: Table, column: int) -> bool:
    """Return whether a column holds numbers, which are right-aligned."""
    return not any(isinstance(row[column], str) for row in table.rows)


def _latex_row(cells: Sequence[str], numeric: Sequence[bool]) -> str:
    signs = (_latex(c).replace("-", "$-$") if number else _latex(c) for c, number in zip(cells, numeric, strict=True))
    row = " & ".join(signs) + r" \\"
    return f"{{}}{row}" if row[0] in "[*" else row  # else the \\ before it would read it as its argument


def _latex(cell: str) -> str:
    return cell.translate(LATEX)
