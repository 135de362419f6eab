"""From the folder that a user names to what was submitted with it."""

from pathlib import Path

from revvideo.errors import InputError
from revvideo.launch.submission import Submission, latest_submission, submission_folders


def find_submission(folder: Path, point: int | None = None) -> tuple[Submission, list[int]]:
    """The newest submission of a run, and which of its members are meant: all, or one point of a sweep.

    Args:
        folder: the run folder, of a sweep also that of one of its points.
        point: the number of a point; None: all, or that of the folder.

    Raises:
        InputError: nothing was submitted with this folder, or there is no such point.
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; expected the run folder that `revvideo submit` has printed")
    if not submission_folders(folder) and submission_folders(folder.parent):
        sweep = latest_submission(folder.parent)
        named = [number for number, member in enumerate(sweep.members) if Path(member.run_folder).name == folder.name]
        if sweep.is_sweep and named:
            return sweep, named
    submission = latest_submission(folder)
    members = list(range(len(submission.members)))
    if point is None:
        return submission, members
    if point not in members:
        raise InputError(f"--point is {point}; {folder} has the points 0 .. {members[-1]}")
    return submission, [point]
