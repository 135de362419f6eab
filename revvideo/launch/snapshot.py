"""A copy of revvideo for a job, so that a restart runs what was submitted; and which commit code is from."""

import shutil
import subprocess
from pathlib import Path

GIT_SECONDS = 10
PACKAGE = Path(__file__).resolve().parents[1]
COMMIT_FILE = "_commit.txt"


def copy_code(folder: Path) -> None:
    """Copy the package to FOLDER/revvideo, without what Python has compiled, and its commit to FOLDER/_commit.txt.

    Args:
        folder: what stands on PYTHONPATH; must not hold a copy already.
    """
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / COMMIT_FILE).write_text((git_commit() or "") + "\n", encoding="utf-8")


def git_commit(root: Path | None = None) -> str | None:
    """The commit of the code at `root` (revvideo's own), with -dirty if files differ; None where nobody knows.

    Args:
        root: a checkout, or the copy that `copy_code` has made of one.
    """
    root = PACKAGE.parent if root is None else root
    if (root / COMMIT_FILE).exists():
        return (root / COMMIT_FILE).read_text(encoding="utf-8").strip() or None
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a slow file system
        return None
    return done.stdout.strip() or None
