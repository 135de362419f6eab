"""From class names to class numbers: sorted names, or a class file."""

import difflib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from revvideo.data.lists.text_files import csv_rows, is_comment, read_json, read_lines, shortened
from revvideo.errors import InputError

logger = logging.getLogger(__name__)

_KEY = "LOADER.CLASS_FILE names the file of the classes"
_NUMBER_COLUMNS = {"id", "label", "number", "index", "class_id", "label_id"}
_NAME_COLUMNS = {"name", "class", "class_name", "label_name"}


def plain_name(name: str) -> str:
    """A class name as it is compared: without quotes, with blanks for underscores (folders often have those)."""
    return " ".join(name.replace('"', "").replace("_", " ").split())


@dataclass(frozen=True)
class ClassNumbers:
    """The numbers of the classes of a data set.

    Attributes:
        names: name of each number.
        source: the class file, or what the names were sorted from.
    """

    names: tuple[str, ...]
    source: str
    _numbers: dict[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for number, name in enumerate(self.names):
            other = self._numbers.setdefault(plain_name(name), number)
            if other != number:
                raise InputError(
                    f"{self.source} has the class {name!r} twice (numbers {other} and {number}; quotes, and blanks or "
                    "underscores, make no difference); expected every class once (LOADER.CLASS_FILE)"
                )

    def number(self, name: str, where: str) -> int:
        """The number of a class.

        Raises:
            InputError: there is no such class; names `where` it was asked for, and the nearest name.
        """
        number = self._numbers.get(plain_name(name))
        if number is None:
            near = difflib.get_close_matches(plain_name(name), list(self._numbers), n=1, cutoff=0.0)
            hint = f"; the nearest is {self.names[self._numbers[near[0]]]!r}" if near else ""
            raise InputError(
                f"{where}: the class {shortened(name)!r} is not among the {len(self.names)} of {self.source}{hint}. "
                "LOADER.CLASS_FILE names the file of the classes"
            )
        return number


def number_classes(found: Iterable[str], source: str, class_file: str, num_classes: int | None) -> ClassNumbers:
    """Numbers from the class file or, without one, from the sorted names that were found in `source`.

    Raises:
        InputError: more classes than `num_classes` (MODEL.NUM_CLASSES), or a class file that cannot be read.
    """
    if class_file:
        classes = ClassNumbers(read_class_file(class_file), class_file)
    else:
        classes = ClassNumbers(tuple(sorted({name.strip().strip('"') for name in found})), source)
    check_class_count(classes, num_classes)
    return classes


def check_class_count(classes: ClassNumbers, num_classes: int | None) -> None:
    """Refuse more classes than the model has; log fewer, as their numbers may not be those of a trained model."""
    count = len(classes.names)
    if num_classes is None or count == num_classes:
        return
    if count > num_classes:
        raise InputError(
            f"{classes.source} has {count} classes, from {classes.names[0]!r} to {classes.names[-1]!r}, but "
            f"MODEL.NUM_CLASSES is {num_classes}; set MODEL.NUM_CLASSES {count}, or name another LOADER.CLASS_FILE"
        )
    logger.warning(
        "%s has %d classes, MODEL.NUM_CLASSES is %d. If a model was trained with other numbers, name its classes with "
        "LOADER.CLASS_FILE",
        classes.source,
        count,
        num_classes,
    )


def read_class_file(path: str) -> tuple[str, ...]:
    """The name of each class number.

    Read are: one name a line (the first is class 0); csv 'id,name' with or without that header (the columns in any
    order with it); json {name: number}, {number: name} or [name, ...]. Quotes around a name are dropped, also those
    inside the strings of Kinetics' json files.

    Raises:
        InputError: not readable, empty, a number twice, or numbers that are not 0, 1, 2, ...
    """
    lines = [line.strip() for line in read_lines(path, _KEY) if line.strip() and not is_comment(line)]
    if not lines or lines == ["[]"]:
        raise InputError(f"the class file {path} is empty; expected one class name a line (LOADER.CLASS_FILE)")
    if lines[0][0] in "[{":
        pairs = _json_pairs(path)
    else:
        pairs = _table_pairs(path, lines) or list(enumerate(lines))
    pairs = [(number, name.strip().strip('"').strip()) for number, name in pairs]
    numbers = sorted(number for number, _ in pairs)
    if numbers != list(range(len(numbers))):
        wrong = next(i for i, number in enumerate(numbers) if number != i)
        problem = f"{numbers[wrong]} twice" if numbers[wrong] < wrong else f"no {wrong}"
        raise InputError(
            f"the class file {path} has {len(numbers)} classes, but {problem}; expected the numbers 0 to "
            f"{len(numbers) - 1}, each once (LOADER.CLASS_FILE)"
        )
    return tuple(name for _, name in sorted(pairs))


def _json_pairs(path: str) -> list[tuple[int, str]]:
    content = read_json(path, _KEY)
    expected = "expected {name: number}, {number: name} or [name, ...] (LOADER.CLASS_FILE)"
    if isinstance(content, list):
        if not all(isinstance(name, str) for name in content):
            raise InputError(f"the class file {path} is a json list, but not of names; {expected}")
        return list(enumerate(content))
    if not isinstance(content, dict) or not content:
        raise InputError(f"the class file {path} holds {json.dumps(content)[:60]}; {expected}")
    if all(_is_number(key) for key in content) and all(isinstance(name, str) for name in content.values()):
        return [(int(number), name) for number, name in content.items()]
    for name, number in content.items():
        if not _is_number(number):
            raise InputError(f"the class file {path} gives {name!r} the number {number!r}; {expected}")
    return [(int(number), name) for name, number in content.items()]


def _table_pairs(path: str, lines: list[str]) -> list[tuple[int, str]]:
    """Pairs of a csv 'id,name'; none where the file is no such table."""
    rows = [[column.strip() for column in row] for _, row in csv_rows(lines, f"the class file {path}")]
    header = [column.lower() for column in rows[0]]
    numbers = [i for i, column in enumerate(header) if column in _NUMBER_COLUMNS]
    names = [i for i, column in enumerate(header) if column in _NAME_COLUMNS]
    if len(header) > 1 and numbers and names:
        number_column, name_column, rows = numbers[0], names[0], rows[1:]
    elif all(len(row) == 2 and _is_number(row[0]) for row in rows):
        number_column, name_column = 0, 1
    else:
        return []
    for line, row in enumerate(rows, start=1):
        if len(row) <= max(number_column, name_column) or not _is_number(row[number_column]):
            raise InputError(
                f"the class file {path}, row {line}: {shortened(str(row))}; expected a class number and a name, "
                "separated by a comma (LOADER.CLASS_FILE)"
            )
    return [(int(row[number_column]), row[name_column]) for row in rows]


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return value >= 0
    return isinstance(value, str) and re.fullmatch(r"\d{1,18}", value) is not None
