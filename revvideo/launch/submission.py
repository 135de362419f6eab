"""What was submitted, in the run folder: who follows, requeues or cancels a run finds all about it here.

RUN/launch/lock                  while a submission is being made
RUN/launch/001/                  one folder a submission; that with the highest number counts
    submission.json              this record
    config_0.yaml                what member 0 runs; a sweep has one of each point
    code/revvideo/               the code that it runs
    script.sbatch                what sbatch was given
    jobs/                        submitit's folder: pickles and one log file of each rank
    attempts/JOB.RESTART/        how every rank began and ended (attempts.py)
    done/0.json                  member 0 has trained and evaluated all it was asked for
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from revvideo.errors import InputError
from revvideo.launch.resources import Resources
from revvideo.paths import replace_file

RECORD = "submission.json"
CLUSTERS = ("slurm", "local", "debug")


@dataclass(frozen=True)
class Member:
    """One run of a submission: the only one, or a point of a sweep.

    Attributes:
        run_folder: its OUTPUT_DIR, absolute.
        values: the keys that the sweep sets, as they were written; empty without a sweep.
    """

    run_folder: str
    values: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Submission:
    """A submission.

    Attributes:
        folder: RUN/launch/NNN, absolute.
        cluster: slurm, local or debug.
        members: the runs; several are a job array, whose element i is member i.
        jobs: job ids in the order of submission, several for a chain; empty until they are known. Of an array its own
            id, without elements.
        resources: what each job asks for.
        command: the command line.
        time: unix seconds.
        cfg_name: the config file as it was named.
    """

    folder: Path
    cluster: str
    members: tuple[Member, ...]
    resources: Resources
    jobs: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    time: float = 0.0
    cfg_name: str = ""

    @property
    def is_sweep(self) -> bool:
        return bool(self.members[0].values)

    @property
    def run_folder(self) -> Path:
        """The folder that the user named: the run's, or the sweep's with a folder for each point below."""
        return self.folder.parents[1]

    @property
    def jobs_folder(self) -> Path:
        """submitit's folder."""
        return self.folder / "jobs"

    @property
    def code_folder(self) -> Path:
        """What stands first on PYTHONPATH."""
        return self.folder / "code"

    def config_file(self, member: int) -> Path:
        return self.folder / f"config_{member}.yaml"

    def done_file(self, member: int) -> Path:
        return self.folder / "done" / f"{member}.json"

    def job_ids(self, member: int) -> tuple[str, ...]:
        """The ids of a member's jobs, as squeue shows them: 17, or 17_2 in an array."""
        if len(self.members) == 1 or self.cluster != "slurm":  # no arrays there: one process runs all members
            return self.jobs
        return tuple(f"{job}_{member}" for job in self.jobs)

    def log_file(self, job: str, rank: int) -> Path:
        """Where a rank of a job (17 or 17_2) writes, all its restarts one after the other."""
        return self.jobs_folder / f"{job}_{rank}_log.out"

    def save(self) -> None:
        """Write the record, atomically."""
        text = json.dumps(dataclasses.asdict(self) | {"folder": str(self.folder)}, indent=2) + "\n"
        replace_file(self.folder / RECORD, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def load_submission(folder: Path) -> Submission:
    """The record in RUN/launch/NNN.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = folder / RECORD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        resources = found["resources"] | {"setup": tuple(found["resources"]["setup"])}
        return Submission(
            folder=folder.absolute(),  # the run folder may have been moved
            cluster=found["cluster"],
            members=tuple(Member(**member) for member in found["members"]),
            resources=Resources(**resources),
            jobs=tuple(found["jobs"]),
            command=tuple(found["command"]),
            time=found["time"],
            cfg_name=found["cfg_name"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the record of a submission {path} cannot be read ({type(error).__name__}: {error})"
        ) from error


def submission_folders(run_folder: Path) -> list[Path]:
    """RUN/launch/NNN of all submissions that have a record, the oldest first."""
    folders = (folder for folder in (run_folder / "launch").glob("[0-9]*") if folder.name.isdigit())
    return sorted((folder for folder in folders if (folder / RECORD).exists()), key=lambda folder: int(folder.name))


def latest_submission(run_folder: Path) -> Submission:
    """The one that counts.

    Raises:
        InputError: nothing was submitted with this run folder.
    """
    folders = submission_folders(run_folder)
    if not folders:
        raise InputError(
            f"{run_folder} is not the folder of a submitted run (no launch/NNN/{RECORD} in it); expected the run "
            "folder that `revvideo submit` has printed"
        )
    return load_submission(folders[-1])
