"""Tables as tabbed lines: what is data and what only lays out the page, spans filled in."""

from __future__ import annotations

from collections.abc import Callable

from selectolax.lexbor import LexborNode

LAYOUT_CHARACTERS = 1500  # a cell that holds more lays out the page
_ROW_CHARACTERS = 2000
_MAX_FILLED = 20_000  # cells that spans add to a table
_MAX_COLUMNS = 100
_CELL_CHARACTERS = 600
_NOT_CELLS = "h1, h2, h3, h4, article, section, form, input, pre, textarea"  # a table with these lays out the page
_NOT_DATA = "pre, table, h1, h2, h3, h4, h5, h6, blockquote, article, section, dl, form"

Row = list[LexborNode | None]
"""The cells of a row from the left, those of spans included; None where a span over columns goes on."""


def lays_out(node: LexborNode) -> bool:
    """Whether a table or list holds whole articles in its cells: then it is no table, only the page's layout."""
    if len(node.text() or "") <= LAYOUT_CHARACTERS or node.tag == "dl":
        return False
    cells = [len(cell.text() or "") for cell in (node.css("td, th") if node.tag == "table" else node.iter())]
    return sum(size for size in cells if size > LAYOUT_CHARACTERS) > 0.5 * sum(cells)


def rows_of(table: LexborNode) -> dict[int, Row]:
    """The rows of a table whose cells span several, by `mem_id`: a cell stands in every row that it spans."""
    rows: dict[int, Row] = {}
    open_spans: dict[int, tuple[LexborNode, int]] = {}  # by column: the cell, and the rows that it still spans
    filled = 0
    for row in table.css("tr"):
        cells: Row = []
        for cell in own_cells(row):
            filled += _take_spans(open_spans, cells)
            across, down = span(cell, "colspan"), span(cell, "rowspan")
            if down > 1:
                open_spans[len(cells)] = (cell, down - 1)
            cells += [cell, *[None] * (across - 1)]
        filled += _take_spans(open_spans, cells)
        rows[row.mem_id] = cells
        if filled > _MAX_FILLED:
            break
    return rows


def _take_spans(open_spans: dict[int, tuple[LexborNode, int]], cells: Row) -> int:
    taken = 0
    while (column := len(cells)) in open_spans:
        cell, left = open_spans.pop(column)
        cells.append(cell)
        taken += 1
        if left > 1:
            open_spans[column] = (cell, left - 1)
    return taken


def own_cells(row: LexborNode) -> list[LexborNode]:
    """The cells that stand in a row itself."""
    return [cell for cell in row.iter() if cell.tag in ("td", "th")]


def span(cell: LexborNode, name: str) -> int:
    """How many columns or rows a cell spans."""
    value = cell.attributes.get(name) or "1"
    return min(max(1, int(value)), _MAX_COLUMNS) if value.isdecimal() and len(value) < 6 else 1


def data_row(row: LexborNode, cells: Row, text_of: Callable[[LexborNode], str]) -> str | None:
    """A row of a table of data as a line with tabs; None for one that only lays out the page."""
    if len(cells) < 2 or all(cell is None for cell in cells[1:]):
        return None
    own = own_cells(row)
    if sum(len(cell.text() or "") for cell in own) > _ROW_CHARACTERS:
        return None
    if any(cell.css_first(_NOT_DATA) is not None for cell in own):
        return None
    return "\t".join(text_of(cell) if cell is not None else "" for cell in cells)


def is_data(table: LexborNode) -> bool:
    """Whether a table holds data and is one block: no table inside, rows of several cells, none of them long."""
    if len(table.text() or "") > 20 * _ROW_CHARACTERS or len(table.css("table")) > 1:
        return False
    cells = table.css("td, th")
    if len(cells) < 4 or table.css_first("tr > * ~ *") is None or table.css_first(_NOT_CELLS) is not None:
        return False
    return max(len(cell.text() or "") for cell in cells) <= _CELL_CHARACTERS
