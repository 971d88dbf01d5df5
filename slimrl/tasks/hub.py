"""Rows of data sets on the Hub, which the library `datasets` loads."""

from collections.abc import Iterable, Mapping

from slimrl.errors import DataError
from slimrl.records import Rejected
from slimrl.tasks.rows import Row, plain
from slimrl.tasks.tables import library_rows

AIME = "di-zhang-fdu/AIME_1983_2024"
OF_TASKS: Mapping[tuple[str, str], tuple[str, str, str]] = {
    ("gsm8k", "train"): ("openai/gsm8k", "main", "train"),
    ("gsm8k", "test"): ("openai/gsm8k", "main", "test"),
    ("math", "train"): ("nlile/hendrycks-MATH-benchmark", "", "train"),
    ("math", "test"): ("HuggingFaceH4/MATH-500", "", "test"),
    ("aime", "train"): (AIME, "", "train"),
    ("aime", "test"): ("HuggingFaceH4/aime_2024", "", "train"),
    ("svamp", "train"): ("ChilleD/SVAMP", "", "train"),
    ("svamp", "test"): ("ChilleD/SVAMP", "", "test"),
}
"""(task, split) -> (data set, its configuration if it has several, its split)"""


def hub_rows(repository: str, subset: str, split: str, way_out: str) -> list[Row | Rejected]:
    """The rows of one split; `subset` is the data set's configuration, empty for its only one.

    Raises DataError, which ends with the way out, for whatever keeps them from being read.
    """
    try:
        import datasets

        found: Iterable[Mapping[str, object]] = datasets.load_dataset(repository, subset or None, split=split)
        rows = [dict(fields) for fields in found]
    except Exception as error:  # whatever the network, the cache or the library raises, the way out is the same
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        sentence = f"data set {repository} could not be read from the Hub ({type(error).__name__}: {reason}); {way_out}"
        raise DataError(sentence) from None
    read = library_rows(f"{repository} {split} row", rows)
    if repository == AIME:
        # its 2024 problems are the test split, in slightly other words that an exact match would miss
        read = [row for row in read if not isinstance(row, Row) or str(plain(row.fields.get("Year"))) != "2024"]
    return read
