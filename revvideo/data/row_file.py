"""A csv file that grows by one row at a time and survives a kill at any moment."""

import contextlib
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from revvideo.errors import InputError
from revvideo.paths import replace_file

# Names of files are bytes: what is no UTF-8 comes back from the file as it went in.
_ERRORS = "surrogateescape"


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
        InputError: the file holds something else, or cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str], key: str, *, restart: bool = False):
        self.path, self.columns, self.key = Path(path), tuple(columns), key
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
        """Add a row; an earlier one with the same key no longer counts."""
        texts = {name: str(row[name]) for name in self.columns}
        self.rows[texts[self.key]] = texts
        self._file.write(self._line(texts.values()))
        self._file.flush()

    def close(self) -> None:
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
        header = self._line(self.columns)
        if not text.startswith(header):
            if header.startswith(text):  # new, empty, or killed while the first line was written
                return
            raise InputError(
                f"{self.path} exists and its first line is not {header.strip()!r}: it was not written by this command "
                "(or by another version of it); name another file"
            )
        complete = text[: text.rfind("\n") + 1]
        for values in csv.reader(io.StringIO(complete[len(header) :], newline="")):
            if len(values) == len(self.columns):
                row = dict(zip(self.columns, values))
                self.rows[row[self.key]] = row

    def _written(self, rows) -> str:
        return self._line(self.columns) + "".join(self._line(row.values()) for row in rows)

    def _write_all(self, path: Path) -> None:
        path.write_text(self._written(self.rows.values()), encoding="utf-8", errors=_ERRORS, newline="")

    @staticmethod
    def _line(values) -> str:
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\n").writerow(values)
        return line.getvalue()
