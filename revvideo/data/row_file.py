"""A csv file that grows by one row at a time and survives a kill at any moment."""

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from revvideo.errors import InputError
from revvideo.paths import replace_file

# Names of files are bytes: what is no UTF-8 comes back from the file as it went in.
_ERRORS = "surrogateescape"


def local_target(path: str | os.PathLike) -> Path:
    """The file that a path leads to, links followed, for a file that is to be written anew.

    Moving a file into place would put it where the link was; and where a device was, such as /dev/null.

    Raises:
        InputError: there is something that is no regular file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {path}: it is no regular file")
    return target


def csv_line(values: Iterable[object], delimiter: str = ",") -> str:
    """A row of a csv file, with its line end."""
    texts, line = [str(value) for value in values], io.StringIO(newline="")
    # Python before 3.13 leaves a lone carriage return without quotes, and reads it as the end of the row.
    quoting = csv.QUOTE_ALL if any("\r" in text for text in texts) else csv.QUOTE_MINIMAL
    csv.writer(line, delimiter=delimiter, lineterminator="\n", quoting=quoting).writerow(texts)
    return line.getvalue()


class RowFile:
    """Rows of named columns, each complete on the disk before `append` returns.

    A file of an earlier run is read when it is opened: a half-written last line is dropped, of two rows with the same
    key the later one counts, and in both cases the file is written anew. A context manager.

    Args:
        path: the file; folders on the way are made.
        columns: names, the first line of the file.
        key: the column that tells what a row is about.
        restart: forget the rows of an earlier run.

    Attributes:
        rows: key -> row, all values as text: what is in the file.

    Raises:
        InputError: the file holds something else or is damaged, or cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str], key: str, *, restart: bool = False):
        self.path, self.columns, self.key = local_target(path), tuple(columns), key
        self.rows: dict[str, dict[str, str]] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = self._text()
            self._read(text)
            if restart:
                self.rows = {}
            if restart or text != self._written(self.rows.values()):
                replace_file(self.path, self._write_all)
            self._file = self.path.open("a", encoding="utf-8", errors=_ERRORS, newline="")
        except OSError as error:
            raise InputError(f"cannot use {self.path}: {error.strerror or error}") from error

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row; an earlier one with the same key no longer counts.

        Raises:
            InputError: the disk is full, or gone.
        """
        texts = {name: str(row[name]) for name in self.columns}
        self.rows[texts[self.key]] = texts
        try:
            self._file.write(csv_line(texts.values()))
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a row that `append` has already refused
            self._file.close()

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _text(self) -> str:
        with (
            contextlib.suppress(FileNotFoundError),
            self.path.open(encoding="utf-8", errors=_ERRORS, newline="") as file,
        ):
            return file.read()
        return ""

    def _read(self, text: str) -> None:
        header = csv_line(self.columns)
        if not text.startswith(header):
            if header.startswith(text):  # new, empty, or killed while the first line was written
                return
            raise InputError(
                f"{self.path} exists and its first line is not {header.strip()!r}: it was not written by this command "
                "(or by another version of it); name another file"
            )
        complete = text[: text.rfind("\n") + 1]
        try:
            for values in csv.reader(io.StringIO(complete[len(header) :], newline="")):
                if len(values) == len(self.columns):
                    row = dict(zip(self.columns, values))
                    self.rows[row[self.key]] = row
        except csv.Error as error:
            raise InputError(f"{self.path} is damaged ({error}); remove it, or name another file") from error

    def _written(self, rows) -> str:
        return csv_line(self.columns) + "".join(csv_line(row.values()) for row in rows)

    def _write_all(self, path: Path) -> None:
        path.write_text(self._written(self.rows.values()), encoding="utf-8", errors=_ERRORS, newline="")
