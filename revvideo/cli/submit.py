"""`revvideo submit`: a config to a SLURM cluster, checked before it waits in the queue."""

import argparse
import functools
import shlex
import sys
from pathlib import Path

from revvideo.config.arguments import add_config_arguments
from revvideo.launch.arguments import add_resource_arguments, given_on_command_line, resources_of
from revvideo.launch.job_config import base_config, job_config, run_folder_of
from revvideo.launch.parse import parse_choice, parse_job_id, parse_whole
from revvideo.launch.preflight import preflight
from revvideo.launch.profiles import list_profiles, load_profile
from revvideo.launch.resources import Resources
from revvideo.launch.submission import CLUSTERS, Submission
from revvideo.launch.sweep import Point, sweep_points

DESCRIPTION = "Submit a config to SLURM: checked first, resumed after preemption, time limits and node failures."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    profiles = ", ".join(list_profiles())
    add = parser.add_argument
    add("--cluster", default="slurm", metavar="|".join(CLUSTERS), help="local: this machine; debug: this process")
    add("--profile", metavar="NAME", help=f"resources of a cluster, a YAML file or one of: {profiles}; options win")
    add("--dry-run", action="store_true", help="print the sbatch script, submit nothing")
    add("--no-check", action="store_true", help="look for no lists, videos and checkpoints, plan no memory")
    add("--after", default="", metavar="JOBID", help="start when this job has succeeded")
    add("--chain", default="1", metavar="N", help="so many jobs, each after the one before, until training is complete")
    add("--test-only", action="store_true", help="evaluate a checkpoint, do not train")
    add(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=v1,v2",
        help="a run for each value, in a job array; several --sweep: for each combination",
    )
    add_resource_arguments(parser)
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from revvideo.jobs.submitted import SubmittedJob
    from revvideo.launch.batch_script import check_slurm
    from revvideo.launch.submit import refuse_if_alive, submit

    cluster = parse_choice(args.cluster, "--cluster", CLUSTERS)
    after = parse_job_id(args.after, "--after") if args.after else ""
    chain = parse_whole(args.chain, "--chain", 1)
    points = sweep_points(args.sweep)
    profile = load_profile(args.profile) if args.profile is not None else {}
    given = given_on_command_line(args)
    base = base_config(args)
    resources = resources_of(given, profile, base, cluster)
    run_folder = run_folder_of(args, base)
    cfgs = _configs(args, points, resources, run_folder)
    if cluster == "slurm":
        check_slurm()
    if not args.dry_run:
        refuse_if_alive(run_folder)
    # The script alone goes to standard output: `revvideo submit --dry-run ... > job.sbatch`.
    say = functools.partial(print, file=sys.stderr if args.dry_run else sys.stdout, flush=True)
    say(f"run folder: {run_folder}")
    for line in preflight([cfg for cfg, _ in cfgs], resources, run_folder, look=not args.no_check, waits=bool(after)):
        say(line)
    submission = submit(
        cfgs,
        resources,
        run_folder=run_folder,
        cluster=cluster,
        make_job=SubmittedJob,
        after=after,
        chain=chain,
        dry_run=args.dry_run,
        command=tuple(sys.argv),
        cfg_name=" ".join(map(str, args.cfg)),
    )
    if not args.dry_run:
        for line in announcement(submission):
            say(line)
    return 0


def _configs(args: argparse.Namespace, points: list[Point], resources: Resources, run_folder: Path) -> list[tuple]:
    """(config, keys that the sweep sets) of each run; the notes of the first are those of all."""
    if not points:
        return [(job_config(args, resources, run_folder, test_only=args.test_only), {})]
    return [
        (
            job_config(
                args,
                resources,
                run_folder / point.folder,
                test_only=args.test_only,
                values=point.values,
                is_quiet=number > 0,
            ),
            point.values,
        )
        for number, point in enumerate(points)
    ]


def announcement(submission: Submission) -> list[str]:
    """What a user wants to know of a submission: job ids, logs, how to follow and cancel it."""
    if submission.cluster == "debug":
        return [f"done in this process: {submission.run_folder}"]
    resources = submission.resources
    kind = "GPU" if resources.gpus_per_node else "process"
    size = f"{_count(resources.nodes, 'node')} x {_count(resources.tasks_per_node, kind)}, {_limit(resources.minutes)}"
    where = f", partition {resources.partition}" if resources.partition else ""
    what = "job" if len(submission.jobs) == 1 else "jobs, one after the other:"
    runs = f"{_count(len(submission.members), 'run')} of " if submission.is_sweep else ""
    lines = [f"submitted {what} {', '.join(submission.jobs)} ({runs}{size}{where})"]
    if submission.is_sweep:
        lines += _table(submission)
    else:
        lines.append(f"log of rank 0: {submission.log_file(submission.job_ids(0)[0], 0)}")
    folder = shlex.quote(str(submission.run_folder))
    return [
        *lines,
        f"state:  revvideo status {folder}",
        f"follow: revvideo logs {folder} --follow",
        f"cancel: revvideo cancel {folder}",
    ]


def _table(submission: Submission) -> list[str]:
    """A line for each point of a sweep: its job, what it sets, its folder and log."""
    rows = []
    for number, member in enumerate(submission.members):
        job = submission.job_ids(number)[0]
        values = " ".join(f"{key}={value}" for key, value in member.values.items())
        rows.append((job, values, member.run_folder, str(submission.log_file(job, 0))))
    rows.insert(0, ("job", "values", "run folder", "log of rank 0"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths)), row[3]]) for row in rows]


def _limit(minutes: int) -> str:
    return f"at most {minutes // 60}:{minutes % 60:02d}:00"


def _count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"
