"""Rows of tables: CSV and its like, and Parquet."""

import csv
import io
import json
import re
from collections.abc import Iterator

from slimrl.errors import DataError
from slimrl.records import Rejected
from slimrl.tasks.formats import column_names
from slimrl.tasks.json_rows import reject, require_utf8
from slimrl.tasks.rows import Row, RowError, spelled


def table_rows(file: str, text: str, delimiter: str) -> list[Row | Rejected]:
    """Rows of text whose first line names the columns. Every cell is text, as it stands; a cell may hold line breaks.

    A row is rejected if it is not UTF-8 or has another number of cells than the first line. Raises DataError, naming
    file:line, where the first line names no columns, or a column twice, and for quotes that are not closed.
    """
    lines = _records(file, text, delimiter)
    where, header = next(lines)
    names = column_names(header)
    if not names:
        raise DataError(f"{where}: the first line names no columns; begin the file with a line such as question,answer")
    if twice := next((name for name in names if name and names.count(name) > 1), ""):
        raise DataError(f"{where}: column {twice!r} is there twice; rename one of them")
    return [_row(where, names, cells) for where, cells in lines]


def _records(file: str, text: str, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Place and cells of every line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        where = f"{file}:{reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            way_out = "write a quote inside of a quoted cell twice, and close every quote"
            raise DataError(f"{where}: not a row of a table ({error}); {way_out}") from None
        if any(cell.strip() for cell in cells):
            yield where, cells


def _row(where: str, names: list[str], cells: list[str]) -> Row | Rejected:
    source = json.dumps(cells, ensure_ascii=False)
    try:
        require_utf8(where, source)
        if len(cells) != len(names):
            what = f"{len(cells)} cells, but the first line names {len(names)} columns"
            raise RowError(where, f"{what}; put cells that hold the delimiter in quotes")
    except RowError as error:
        return reject(where, error, source)
    return Row(where, {name: cell for name, cell in zip(names, cells, strict=True) if name})


def parquet_rows(file: str, data: bytes) -> list[Row | Rejected]:
    """Rows of a Parquet file, read by pyarrow; raises DataError for a file that it cannot read."""
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
        rows: list[dict[str, object]] = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = re.sub(r"\s+", " ", str(error)).strip().rstrip(".")[:160]
        raise DataError(f"{file} is Parquet that pyarrow cannot read ({reason}); write the file again") from None
    return library_rows(f"{file} row", rows)


def library_rows(prefix: str, rows: list[dict[str, object]]) -> list[Row | Rejected]:
    """Rows that a library has read; a place is the prefix and the number of the row, counted from 0."""
    return [
        Row(f"{prefix} {index}", {name: spelled(value) for name, value in fields.items()})
        for index, fields in enumerate(rows)
    ]
