"""What is asked of a list format and what it answers."""

from dataclasses import dataclass

# Split -> the names that its files and folders go by, the usual one first.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "validate", "valid"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Manifest:
    """The videos (or pictures) of one split.

    Attributes:
        paths: as they are to be opened (prefix already joined); a folder of pictures each where `kind` is "frames".
        labels: class numbers, one a path.
        source: the list or folder that they came from, for messages.
        kind: "video", "frames" (a path is a folder of pictures) or "image".
        class_names: name of each class number; empty where nothing tells them.
        labelled: False: the list has no labels, and all of `labels` are 0.
    """

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    source: str
    kind: str = "video"
    class_names: tuple[str, ...] = ()
    labelled: bool = True

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Request:
    """Arguments of `read_split`, which explains them, for the modules of this package."""

    root: str
    split: str
    prefix: str = ""
    separator: str = " "
    guess_separator: bool = False
    num_classes: int | None = None
    video_folder: str = ""
    class_file: str = ""
    seed: int = 0
    val_fraction: float = 0.1
    test_fraction: float = 0.1


@dataclass(frozen=True)
class Found:
    """A format that fits the folder.

    Attributes:
        format: its name, as LOADER.LIST_FORMAT takes it.
        evidence: the file or folder that shows it.
    """

    format: str
    evidence: str
