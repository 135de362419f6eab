"""The commands of a user around a job, each in a process of its own: slurm/submit.py, then status, logs, cancel.

The runs are those of the tiny config, of two blocks.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import tiny

from revvideo.launch.submission import Submission, latest_submission

REPOSITORY = Path(__file__).parents[1]
SECONDS = 120  # for one command on a busy machine
RUN = tiny.RANDOM | {"NUM_GPUS": 0, "MVIT.DEPTH": 2, "LOG_PERIOD": 1, "RUN.DETERMINISTIC": True}
RUN |= {"SOLVER.MAX_EPOCH": 4, "TRAIN.EVAL_PERIOD": 1000, "TRAIN.CHECKPOINT_PERIOD": 1000, "DIST.TIMEOUT_SECONDS": 90}
QUICK = ("--no-check",)  # planning the memory imports torch: 4 s


def command(*words: object, env: Mapping[str, str], cwd: Path | None = None) -> tiny.Outcome:
    """Run a Python script, or -m MODULE, with its arguments; `env` is all of its environment."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=env, cwd=cwd, capture_output=True, text=True, timeout=SECONDS
    )
    return tiny.Outcome(done.returncode, done.stdout, done.stderr)


def submit_words(
    data: Path, folder: Path, *words: object, keys: Mapping = {}, repository: Path = REPOSITORY
) -> list[str]:
    """What follows `python`; of an option that stands twice the last one counts."""
    own = {"DATA.PATH_TO_DATA_DIR": data, "OUTPUT_DIR": folder}
    asked = ["--gpus-per-node", 0, "--tasks-per-node", 1, "--nodes", 1, "--mem", "1G", "--time", 10, *words]
    config = ["--cfg", "demo/REV_MVIT_DEMO", *tiny.overrides(own, RUN, keys)]
    return [str(word) for word in (repository / "slurm/submit.py", *asked, *config)]


def submit(
    data: Path, folder: Path, *words: object, env: Mapping[str, str], cwd: Path | None = None, keys: Mapping = {}
) -> Submission:
    """Submit a run, which must succeed."""
    tiny.done(command(*submit_words(data, folder, *words, keys=keys), env=env, cwd=cwd))
    return latest_submission(folder)


def about(name: str, folder: Path, *words: object, env: Mapping[str, str]) -> str:
    """What `revvideo NAME RUN` prints, which must succeed."""
    return tiny.done(command("-m", "revvideo.cli.main", name, folder, *words, env=env)).out


def status(folder: Path, env: Mapping[str, str]) -> list[dict]:
    """Of each run of a submission."""
    return json.loads(about("status", folder, "--json", env=env))["members"]


def check_refused(outcome: tiny.Outcome, message: str) -> None:
    """Exit code 2, and one message on one line, the last one."""
    assert outcome.code == 2, outcome.err
    errors = [line for line in outcome.err.splitlines() if "error" in line.lower()]
    assert len(errors) == 1, outcome.err
    assert errors[0] == outcome.err.splitlines()[-1]
    assert errors[0].startswith("revvideo: error: ")
    assert message in errors[0]


def results(folder: Path) -> dict:
    """results.json, without what differs between runs that come to the same."""
    found = json.loads((folder / "results.json").read_text("utf-8"))
    return {name: value for name, value in found.items() if name not in ("checkpoint", "wall_seconds")}


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))
