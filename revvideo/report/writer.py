"""Reading run folders and writing their report."""

import logging
from collections.abc import Sequence
from pathlib import Path

from revvideo.errors import InputError
from revvideo.paths import replace_file
from revvideo.report.page import page
from revvideo.report.run_record import read_run
from revvideo.report.thumbnails import Budget

logger = logging.getLogger(__name__)

FILE_NAME = "report.html"
THUMBNAIL_BYTES = 1_500_000  # of the whole page, encoded
THUMBNAIL_SECONDS = 20.0  # spent on reading videos


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of one run, or of several in one page.

    Args:
        folders: run folders; what of a run is missing is left out of its report.
        out: the file; None: report.html in the folder of the only run, or in the working folder for several.

    Returns:
        The file.

    Raises:
        InputError: a folder is no run folder, one is named twice, or the file cannot be written.
    """
    if not folders:
        raise InputError("no run to report on; expected at least one run folder")
    resolved = [folder.resolve() for folder in folders]
    twice = [str(folder) for number, folder in enumerate(resolved) if folder in resolved[:number]]
    if twice:
        raise InputError(f"the run folder {twice[0]} is named twice; expected different ones")
    runs = [read_run(folder) for folder in folders]
    _tell_apart(runs)
    path = out or (folders[0] / FILE_NAME if len(folders) == 1 else Path(FILE_NAME))
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a file for the report, such as {path / FILE_NAME}")
    text = page(runs, Budget.of(THUMBNAIL_BYTES, THUMBNAIL_SECONDS))
    try:
        replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the report {path} cannot be written ({error}); name another file (--out)") from error
    return path


def _tell_apart(runs: list) -> None:
    """Runs of the same name get as much of their path as tells them apart."""
    depth = 1
    while len({run.name for run in runs}) < len(runs):
        depth += 1
        for run in runs:
            run.name = "/".join(run.folder.resolve().parts[-depth:])


def report_run(folder: Path) -> None:
    """Write report.html at the end of a run; whatever goes wrong is a warning, for the run itself is done."""
    try:
        logger.info("report: %s", write_report([folder]))
    except Exception as error:  # a picture of the run must not end the run
        logger.warning(
            "no report was written (%s: %s); revvideo report %s tries again", type(error).__name__, error, folder
        )
