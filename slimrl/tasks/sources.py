"""From settings to rows, whatever holds them: the one way in."""

import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from slimrl.config.places import is_hub_data
from slimrl.config.task import TaskConfig
from slimrl.errors import DataError, SettingsError
from slimrl.records import Rejected
from slimrl.tasks.formats import by_column, delimiter_of, find_table, refuse_binary, refuse_layout
from slimrl.tasks.hub import OF_TASKS, hub_rows
from slimrl.tasks.json_rows import column_rows, json_rows
from slimrl.tasks.rows import Row, bad_rows
from slimrl.tasks.tables import parquet_rows, table_rows

PARQUET, GZIP = b"PAR1", b"\x1f\x8b"
"""First bytes."""
UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Source:
    """A file, or one split of a data set on the Hub."""

    path: str
    subset: str = ""
    split: str = ""
    """Empty: `path` is a file."""
    way_out: str = ""
    """The end of the sentence on a data set that cannot be read."""

    def rows(self) -> list[Row | Rejected]:
        """All rows; raises DataError where there is nothing to read."""
        if not self.split:
            return scan_rows(self.path)
        return hub_rows(self.path, self.subset, self.split, self.way_out)


def find_sources(config: TaskConfig, *, training: bool = True) -> tuple[Source | None, Source | None]:
    """The sources of the training and of the held-out problems; None: the held-out ones are some of the others. Without
    `training` those of the former are None where `task.test_path` stands alone, and a data set that cannot be read is told the
    setting by which held-out problems are enough.

    Raises SettingsError for settings of the Hub where a file is read, and for a task that is not on the Hub.
    """
    on_hub = bool(config.path) and is_hub_data(config.path)
    test_on_hub = is_hub_data(config.test_path) if config.test_path else on_hub
    for key, acts in (("subset", on_hub), ("split", on_hub), ("test_split", test_on_hub)):
        if getattr(config, key) and not acts:
            path = "test_path" if config.test_path and key == "test_split" else "path"
            place = f"task.{path} names no data set on the Hub (org/name)"
            raise SettingsError(f"task.{key}={getattr(config, key)} has no effect, since {place}; remove it")
    way_out = "check task.path, task.subset and task.split, or give a local file"
    train = None
    if config.path:
        train = Source(config.path, config.subset, config.split or "train", way_out) if on_hub else Source(config.path)
    elif training or not config.test_path:
        train = _of_task(config.name, "train", training=training)
    if config.test_path:
        subset = config.subset if config.test_path == config.path else ""
        way_out = "check task.test_path and task.test_split, or give a local file"
        there = Source(config.test_path, subset, config.test_split or "test", way_out)
        return train, there if test_on_hub else Source(config.test_path)
    if config.test_split:
        return train, Source(config.path, config.subset, config.test_split, "check task.test_split")
    return train, None if config.path else _of_task(config.name, "test", training=training)


def _of_task(name: str, split: str, *, training: bool) -> Source:
    way_out = f"set task.path{'' if split == 'train' else ' and task.test_path'} to a local file"
    if not training:
        way_out = "set task.test_path to a local file of held-out problems"
    if (name, split) not in OF_TASKS:
        raise SettingsError(f"task.name={name} has no data set on the Hub; {way_out}")
    return Source(*OF_TASKS[name, split], way_out)


def read_rows(file: str) -> list[Row]:
    """As `scan_rows`, but raises DataError if any row is bad."""
    rows = scan_rows(file)
    rejected = [row for row in rows if isinstance(row, Rejected)]
    if rejected:
        raise DataError(bad_rows(rejected))
    return [row for row in rows if isinstance(row, Row)]


def scan_rows(file: str) -> list[Row | Rejected]:
    """Rows of JSONL, of JSON (one array, one object that holds an array, one object of columns), of CSV and its like, or of
    Parquet, each of them also compressed by gzip.

    Formats are known by their bytes; only a table is also known by its name (.csv, .tsv), since its first line could be text.
    A byte-order mark is skipped, and a CR alone ends a line too. Raises DataError for a file that cannot be read, that has no
    rows, or in another format, naming it.
    """
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}); check the path") from None
    if data.startswith(GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} is gzip that cannot be unpacked ({error}); copy the file again") from None
    if data.startswith(PARQUET):
        rows = parquet_rows(file, data)
    else:
        refuse_binary(file, data)
        # a byte that is not UTF-8 becomes half of a surrogate pair, which no UTF-8 holds, and spoils only its own line
        rows = _text_rows(file, data.removeprefix(UTF8_MARK).decode("utf-8", "surrogateescape"))
    if not rows:
        raise DataError(f"{file} has no rows; give a file with one JSON object a line")
    return rows


def _text_rows(file: str, text: str) -> list[Row | Rejected]:
    if not text.strip():
        return []
    named = Path(file.removesuffix(".gz")).suffix.lower()
    if named in (".csv", ".tsv"):
        return table_rows(file, text, delimiter_of(text, "\t" if named == ".tsv" else ","))
    lines = re.sub(r"\r(?!\n)", "\n", text)  # no JSON string holds either
    if by_column(lines):
        return column_rows(file, lines)
    rows = list(json_rows(file, lines))
    # a text format is only looked for if no row could be read, so a few broken lines are never taken for another format
    if rows and not any(isinstance(row, Row) for row in rows):
        if found := find_table(text):
            return table_rows(file, text, found)
        refuse_layout(file, lines)
    return rows
