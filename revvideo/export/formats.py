"""The two kinds of files: torch.export archives (.pt2) and ONNX (.onnx): written, and opened again as functions."""

import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from revvideo.errors import InputError
from revvideo.export.contract import INPUT_NAME, METADATA_KEY, OUTPUT_NAME

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_MOST_BYTES = 2**31 - 2**24  # protobuf takes no larger message; the graph needs some MiB beside the weights
_CHATTY = ("onnxscript", "onnx_ir", "torch.onnx")


@dataclass(frozen=True)
class OpenedFile:
    """A file of a model, ready to run.

    Attributes:
        run: float32 clips as the contract says, to logits `(B, K)`.
        contract: see `contract.describe`.
    """

    run: Callable[[Tensor], Tensor]
    contract: dict[str, Any]


@dataclass(frozen=True)
class Format:
    """How one kind of file is written and opened.

    Attributes:
        name: for messages.
        packages: that are needed beside torch.
        write: program, contract and path to a file. Raises InputError where the format does not know an operator.
        open: a path to an `OpenedFile`.
    """

    name: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, dict[str, Any], Path], None]
    open: Callable[[Path], OpenedFile]


def format_of(path: Path) -> Format:
    """The format of a file by its suffix.

    Raises:
        InputError: another suffix, or packages of the format are missing.
    """
    found = FORMATS.get(path.suffix)
    if found is None:
        raise InputError(f"{path}: the suffix is {path.suffix!r}; expected .pt2 (torch.export) or .onnx")
    missing = [package for package in found.packages if find_spec(package) is None]
    if missing:
        raise InputError(f"{found.name} needs {', '.join(missing)}; install them: pip install 'revvideo[export]'")
    return found


def _write_torch(program: ExportedProgram, contract: dict[str, Any], path: Path) -> None:
    torch.export.save(program, path, extra_files={METADATA_KEY: json.dumps(contract)})


def _open_torch(path: Path) -> OpenedFile:
    extra = {METADATA_KEY: ""}
    with _quiet():
        module = torch.export.load(path, extra_files=extra).module()

    @torch.no_grad()
    def run(clips: Tensor) -> Tensor:
        return module(clips)

    return OpenedFile(run, json.loads(extra[METADATA_KEY]))


def _write_onnx(program: ExportedProgram, contract: dict[str, Any], path: Path) -> None:
    num_bytes = sum(t.numel() * t.element_size() for t in [*program.state_dict.values(), *program.constants.values()])
    if num_bytes > ONNX_MOST_BYTES:
        raise InputError(f"the weights are {num_bytes / 2**30:.1f} GiB; one ONNX file holds less than 2; use .pt2")
    with _quiet():
        try:
            converted = torch.onnx.export(
                program, dynamo=True, input_names=[INPUT_NAME], output_names=[OUTPUT_NAME], optimize=True, verbose=False
            )
        except torch.onnx.OnnxExporterError as error:
            raise InputError(_why_not_onnx(error)) from error
        batch = converted.model.graph.inputs[0].shape[0]
        if contract["input"]["shape"][0] is None and hasattr(converted, "rename_axes"):  # not in older torch
            converted.rename_axes({batch: "batch"})
        converted.model.metadata_props[METADATA_KEY] = json.dumps(contract)
        converted.save(path, external_data=False)


def _open_onnx(path: Path) -> OpenedFile:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    contract = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])

    def run(clips: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT_NAME], {INPUT_NAME: clips.contiguous().numpy()})[0])

    return OpenedFile(run, contract)


def _why_not_onnx(error: BaseException) -> str:
    """One line of an exporter's error: the operators that ONNX lacks, where it is that."""
    messages, cause = [], error
    while cause is not None:
        messages.append(str(cause))
        cause = cause.__cause__
    operators = sorted(set(re.findall(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", "\n".join(messages))))
    if operators:
        return (
            f"ONNX has no counterpart of the operators {', '.join(operators)}; write a torch.export file (.pt2), or "
            "replace them in the model"
        )
    reason = next((line for line in messages[-1].splitlines() if line.strip()), type(error).__name__)
    return f"the model cannot be written as ONNX: {reason}; write a torch.export file (.pt2)"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks on every operator that is not simplified, and torch 2.6's on every tensor that is a constant."""
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


FORMATS = {
    ".pt2": Format("torch.export", (), _write_torch, _open_torch),
    ".onnx": Format("ONNX", ONNX_PACKAGES, _write_onnx, _open_onnx),
}
