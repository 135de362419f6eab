"""A submission: what a job needs is put into the run folder, then the job into the queue."""

import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fvcore.common.config import CfgNode
from submitit.core.utils import FailedJobError, FailedSubmissionError

from revvideo.config import dump_config
from revvideo.errors import InputError
from revvideo.launch import slurm_queue
from revvideo.launch.batch_script import check_script, check_slurm, make_executor, refusal, script_text
from revvideo.launch.clean_environment import DEVICE_VARIABLES, clean_environment
from revvideo.launch.job_state import UNKNOWN
from revvideo.launch.local_executor import describe_local, start_local
from revvideo.launch.lock import submission_lock
from revvideo.launch.resources import Resources
from revvideo.launch.snapshot import copy_code
from revvideo.launch.submission import CLUSTERS, Member, Submission, load_submission, submission_folders

logger = logging.getLogger(__name__)

LOCK, SCRIPT = "lock", "script.sbatch"

MakeJob = Callable[[Path, int], Callable[[], object]]


def submit(
    cfgs: Sequence[tuple[CfgNode, dict[str, str]]],
    resources: Resources,
    *,
    run_folder: Path,
    cluster: str,
    make_job: MakeJob,
    after: str = "",
    chain: int = 1,
    dry_run: bool = False,
    command: Sequence[str] = (),
    cfg_name: str = "",
) -> Submission:
    """Submit one run, or the points of a sweep.

    Args:
        cfgs: the config of each member, with the keys that the sweep sets. OUTPUT_DIR is absolute.
        resources: what each job asks for.
        run_folder: where launch/NNN comes; the OUTPUT_DIR of the only member, or above those of a sweep.
        cluster: slurm; local: on this machine, in the background; debug: in this process.
        make_job: from RUN/launch/NNN and the number of a member, what a task of the job calls; it is pickled.
        after: id of a job that has to succeed first; "" for none.
        chain: number of jobs, one after the other, however each ends.
        dry_run: print the script and leave nothing behind.
        command: the command line, for the record.
        cfg_name: the config file as it was named, for the record.

    Returns:
        The submission, with the ids of its jobs; of a dry run without.

    Raises:
        InputError: it cannot be submitted so; then nothing was.
    """
    run_folder = run_folder.absolute()
    _check(resources, len(cfgs), run_folder, cluster, after, chain)
    members = tuple(Member(os.path.abspath(cfg.OUTPUT_DIR), values) for cfg, values in cfgs)

    def plan() -> Submission:
        folder = run_folder / "launch" / _next_number(run_folder)
        words, now = tuple(command), round(time.time(), 3)
        return Submission(folder, cluster, members, resources, command=words, time=now, cfg_name=cfg_name)

    if dry_run:
        submission = plan()
        print(_script(submission, after))
        return submission
    with _launch_folder(run_folder) as launch_folder, submission_lock(launch_folder / LOCK):
        for folder in dict.fromkeys([run_folder, *(Path(member.run_folder) for member in members)]):
            refuse_if_alive(folder)
        submission = plan()
        script = _script(submission, after)
        with _only_if_submitted(submission):
            _fill(submission, [cfg for cfg, _ in cfgs], script)
            jobs = [make_job(submission.folder, member) for member in range(len(members))]
            if cluster == "slurm":
                return _submit_to_slurm(submission, jobs, after, chain)
            name = f"debug-{os.getpid()}" if cluster == "debug" else start_local(submission, jobs[0])
            submission = dataclasses.replace(submission, jobs=(name,))
            submission.save()
    if cluster == "debug":
        _run_here(jobs, resources)  # the lock is free again: this may take long
    return submission


def _check(resources: Resources, num_members: int, run_folder: Path, cluster: str, after: str, chain: int) -> None:
    if cluster not in CLUSTERS:
        raise InputError(f"--cluster {cluster}: expected one of {', '.join(CLUSTERS)}")
    if "%" in str(run_folder):
        raise InputError(f"run folder {run_folder}: Slurm and submitit replace % in names; choose one without")
    if chain < 1:
        raise InputError(f"--chain {chain}: expected the number of jobs, 1 or more")
    if cluster == "slurm":
        check_slurm()
        if after:
            _check_after(after)
        return
    if after or chain > 1:
        raise InputError(f"--after and --chain need Slurm's queue; leave them out with --cluster {cluster}")
    if cluster == "local" and num_members > 1:
        raise InputError(
            f"a sweep of {num_members} points would run all at once on this machine; use --cluster slurm, or debug, "
            "which runs one after the other"
        )
    if cluster == "local" and resources.nodes > 1:
        raise InputError(f"--nodes {resources.nodes}: --cluster local has this machine only; expected 1")
    if cluster == "debug" and resources.num_tasks > 1:
        raise InputError(
            f"--cluster debug runs in one process, not in {resources.num_tasks}; ask for one task, or use "
            "--cluster local"
        )


def _check_after(job: str) -> None:
    """Refuse to wait for a job that nobody knows (Slurm would not wait), or that can no longer succeed.

    Raises:
        InputError: see above, or Slurm cannot be asked.
    """
    state = slurm_queue.job_states([job])[job]
    if state.state == UNKNOWN:
        raise InputError(
            f"--after {job}: Slurm does not know this job (any more); expected the id of a job that waits, runs "
            "or has ended lately; leave --after out if it has succeeded"
        )
    if state.state != "COMPLETED" and not slurm_queue.is_alive(state):
        raise InputError(f"--after {job}: this job is {state.state} and will not succeed; submit it again first")


def _run_here(jobs: Sequence[Callable[[], object]], resources: Resources) -> None:
    if resources.setup:
        logger.warning("--cluster debug does not run the lines of --setup: %s", "; ".join(resources.setup))
    with clean_environment(keep=DEVICE_VARIABLES):
        os.environ.update(resources.env)
        for job in jobs:
            job()


def refuse_if_alive(run_folder: Path) -> None:
    """Refuse to submit a run again while it runs, or waits to, alone or as a point of a sweep.

    Raises:
        InputError: a job of the latest submission of the run folder, or of the sweep that it lies in, lives.
    """
    for folders in filter(None, map(submission_folders, (run_folder, run_folder.parent))):
        submission = load_submission(folders[-1])
        if not submission.jobs or submission.cluster == "debug":
            continue
        states = slurm_queue.all_states(submission)
        if submission.run_folder != run_folder:  # a sweep's, perhaps: of its jobs the point's own
            names = [Path(member.run_folder).name if submission.is_sweep else "" for member in submission.members]
            own = names.index(run_folder.name) if run_folder.name in names else None
            states = {} if own is None else {job: states[job] for job in submission.job_ids(own)}
        living = [state for state in states.values() if slurm_queue.is_alive(state)]
        if living:
            jobs = ", ".join(f"{state.job} ({state.state})" for state in living)
            raise InputError(
                f"{run_folder} was submitted already and its job lives: {jobs}; wait for its end, end it by "
                f"`revvideo cancel {run_folder}`, or choose another OUTPUT_DIR"
            )


def _script(submission: Submission, after: str) -> str:
    """What would be submitted, found acceptable by Slurm; for a chain the first of its scripts."""
    if submission.cluster != "slurm":
        return describe_local(submission)
    with clean_environment():
        executor = make_executor(submission, _dependency(after), all_or_none=bool(after))
        text = script_text(executor, len(submission.members))
    check_script(text)
    return text


def _dependency(after: str, before: str = "") -> str:
    """Slurm's condition: after the success of `after`, and after any end of `before`."""
    wanted = (f"afterok:{after}" if after else "", f"afterany:{before}" if before else "")
    return ",".join(condition for condition in wanted if condition)


def _next_number(run_folder: Path) -> str:
    numbers = (int(folder.name) for folder in (run_folder / "launch").glob("[0-9]*") if folder.name.isdigit())
    return f"{max(numbers, default=0) + 1:03d}"


@contextmanager
def _launch_folder(run_folder: Path) -> Iterator[Path]:
    """RUN/launch, made; what was made for it and is empty at the end is taken away.

    Raises:
        InputError: it cannot be made.
    """
    folder = run_folder / "launch"
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} is not writable")
    except OSError as error:
        raise InputError(
            f"the run folder {run_folder} cannot be written ({error}); choose another OUTPUT_DIR"
        ) from error
    try:
        yield folder
    finally:
        for each in made:
            try:
                each.rmdir()
            except OSError:  # not empty: the submission is in it
                break


@contextmanager
def _only_if_submitted(submission: Submission) -> Iterator[None]:
    """Take the folder away again if no job is recorded when it fails."""
    try:
        yield
    except BaseException:
        if not (submission.folder.is_dir() and _has_jobs(submission.folder)):
            shutil.rmtree(submission.folder, ignore_errors=True)
        raise


def _has_jobs(folder: Path) -> bool:
    try:
        return bool(load_submission(folder).jobs)
    except InputError:
        return False


def _fill(submission: Submission, cfgs: Sequence[CfgNode], script: str) -> None:
    """RUN/launch/NNN with all that the job reads, and the record, as yet without ids.

    Raises:
        InputError: it cannot be written.
    """
    try:
        submission.folder.mkdir()
        for member, cfg in enumerate(cfgs):
            submission.config_file(member).write_text(dump_config(cfg), encoding="utf-8")
        (submission.folder / SCRIPT).write_text(script, encoding="utf-8")
        copy_code(submission.code_folder)
        submission.save()
    except OSError as error:
        raise InputError(f"the run folder {submission.run_folder} cannot be written ({error})") from error


def _submit_to_slurm(
    submission: Submission, jobs: Sequence[Callable[[], object]], after: str, chain: int
) -> Submission:
    for _ in range(chain):
        before = submission.jobs[-1] if submission.jobs else ""
        executor = make_executor(submission, _dependency(after, before), all_or_none=bool(after))
        text = script_text(executor, len(jobs))
        with clean_environment(script=text):
            try:
                submitted = executor.submit_array(jobs)
            except (FailedJobError, FailedSubmissionError) as error:
                slurm_queue.cancel(submission.jobs)  # a part of a chain is not what was asked for
                raise refusal(str(error), text, cancelled=submission.jobs) from error
        job = submitted[0].job_id.partition("_")[0]
        submission = dataclasses.replace(submission, jobs=(*submission.jobs, job))
        submission.save()
    return submission
