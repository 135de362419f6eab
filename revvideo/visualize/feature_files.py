"""A folder of features: a file for each video, an index of them, and what they were made with.

    features.json       model, protocol, kind of features, class names
    index.csv           path, label, file, error: a row a video, readable or not
    videos/NAME-xxxxxxxxxxxx.npz    features (V, ...), path, label
    features.npz        pooled features of all videos: features (N, D), the mean over views; path, label, class_names

With the format safetensors the files end on .safetensors; what is no tensor is in their metadata.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from revvideo.data.row_file import RowFile
from revvideo.errors import InputError
from revvideo.paths import replace_file

FORMATS = ("npz", "safetensors")
COLUMNS = ("path", "label", "file", "error")
UNLABELLED = -1  # the label in the arrays where none is known; in index.csv it is empty


class FeatureFolder:
    """The folder of one extraction; a context manager.

    Args:
        path: the folder, made if it is missing.
        format: of the files, one of `FORMATS`.
        identity: what decides the features, see `FeatureExtractor.identity`.
        description: further contents of features.json.
        restart: forget what an earlier run has left.

    Raises:
        InputError: another format, features of another model or protocol are in the folder, or it cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        format: str,
        identity: Mapping[str, str],
        description: Mapping[str, object],
        restart: bool = False,
    ):
        if format not in FORMATS:
            raise InputError(f"--format is {format!r}; expected one of {', '.join(FORMATS)}")
        self.path, self.format = Path(path), format
        self._class_names = tuple(map(str, description.get("class_names", ())))
        try:
            if restart:
                self._clear()
            (self.path / "videos").mkdir(parents=True, exist_ok=True)
            self._claim({**identity, "format": format}, description)
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror or error}") from error
        self._rows = RowFile(self.path / "index.csv", COLUMNS, "path", restart=restart)

    def _clear(self) -> None:
        """Delete what an earlier run has left, if one was here."""
        file = self.path / "features.json"
        if file.exists():
            shutil.rmtree(self.path / "videos", ignore_errors=True)
            for format in FORMATS:
                (self.path / f"features.{format}").unlink(missing_ok=True)
            file.unlink()

    def _claim(self, identity: dict[str, str], description: Mapping[str, object]) -> None:
        """Write features.json, or find it with the same identity."""
        file = self.path / "features.json"
        if file.exists():
            try:
                held = json.loads(file.read_text(encoding="utf-8"))["identity"]
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{file} is damaged; take another --out, or --restart") from error
            if held != identity:
                names = [name for name, value in identity.items() if held.get(name) != value]
                raise InputError(
                    f"{self.path} holds features that differ in: {', '.join(names)}; take another --out, or --restart "
                    "to replace them"
                )
            return
        text = json.dumps({**description, "identity": identity}, indent=2, ensure_ascii=False) + "\n"
        replace_file(file, lambda path: path.write_text(text, encoding="utf-8", errors="surrogateescape"))

    def has(self, path: str) -> bool:
        """Whether the features of a video are there; one that could not be read is tried again."""
        row = self._rows.rows.get(path)
        return row is not None and not row["error"] and (self.path / row["file"]).is_file()

    def add(self, path: str, label: int | None, features: np.ndarray) -> None:
        """Write the features `(V, ...)` of one video; they are there for good when this returns.

        Raises:
            InputError: the folder cannot be written.
        """
        name = f"videos/{_file_stem(path)}.{self.format}"
        arrays = {"features": features, "label": np.int64(UNLABELLED if label is None else label)}
        self._write(self.path / name, arrays, {"path": path})
        self._rows.append({"path": path, "label": "" if label is None else label, "file": name, "error": ""})

    def add_failure(self, path: str, label: int | None, reason: str) -> None:
        """Note that a video cannot be read."""
        self._rows.append({"path": path, "label": "" if label is None else label, "file": "", "error": reason})

    def failed(self, paths: tuple[str, ...]) -> list[tuple[str, str]]:
        """(path, reason) of those of `paths` that could not be read."""
        rows = [self._rows.rows[path] for path in paths if path in self._rows.rows]
        return [(row["path"], row["error"]) for row in rows if row["error"]]

    def write_all(self, paths: tuple[str, ...]) -> Path | None:
        """Write the pooled features of those of `paths` that are there to one file; None where there are none."""
        rows = [self._rows.rows[path] for path in paths if self.has(path)]
        if not rows:
            return None
        features = [read_features(self.path / row["file"]).astype(np.float32).mean(axis=0) for row in rows]
        labels = [int(row["label"]) if row["label"] else UNLABELLED for row in rows]
        target = self.path / f"features.{self.format}"
        arrays = {"features": np.stack(features), "label": np.array(labels, np.int64)}
        self._write(target, arrays, {"path": [row["path"] for row in rows], "class_names": list(self._class_names)})
        return target

    def _write(self, file: Path, arrays: Mapping[str, np.ndarray], texts: Mapping[str, str | list[str]]) -> None:
        def write(path: Path) -> None:
            with open(path, "wb") as stream:  # given a path, numpy would add .npz to it
                if self.format == "npz":
                    np.savez(stream, **arrays, **{name: np.array(text, np.str_) for name, text in texts.items()})
                else:
                    stream.write(_safetensors(arrays, texts))

        try:
            replace_file(file, write)
        except OSError as error:
            raise InputError(f"cannot write {file}: {error.strerror or error}") from error

    def close(self) -> None:
        self._rows.close()

    def __enter__(self) -> "FeatureFolder":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def read_features(file: str | os.PathLike) -> np.ndarray:
    """The features `(V, ...)` of a file that `FeatureFolder` has written."""
    if os.fspath(file).endswith(".safetensors"):
        from safetensors.numpy import load_file

        return load_file(file)["features"]
    with np.load(file) as content:  # allow_pickle is off
        return content["features"]


def _safetensors(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str | list[str]]) -> bytes:
    from safetensors.numpy import save

    # Names of files are bytes, the metadata is UTF-8: what is no UTF-8 is written as an escape. Lists as JSON.
    metadata = {
        name: (text if isinstance(text, str) else json.dumps(text)).encode("utf-8", "backslashreplace").decode()
        for name, text in texts.items()
    }
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata)


def _file_stem(path: str) -> str:
    """A name that two paths never share: files of one name lie in many folders."""
    name = os.path.splitext(os.path.basename(os.path.normpath(path)))[0]
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
    return f"{name[:100]}-{digest}"
