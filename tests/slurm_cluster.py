"""A local Slurm cluster for tests: the one of slurm/local_cluster, and what tests ask of it.

The fixture `slurm` (conftest.py) is one of two nodes and a spare one that all tests of the session share:

    job = slurm.sbatch("-N2", "--wrap", "srun hostname", cwd=tmp_path)
    assert slurm.wait_for(job, "COMPLETED")["ExitCode"] == "0:0"

A test that kills nodes makes its own: `with cluster(nodes=2, spare=1) as own: ...`.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from local_slurm import ClusterError, Layout, LocalCluster, missing_programs, require_free

LOCAL_CLUSTER = Path(__file__).parents[1] / "slurm/local_cluster"  # on pytest's path: pyproject.toml
COMMAND = LOCAL_CLUSTER / "cluster.py"
FIELD = re.compile(r"(?:^| )([A-Za-z]\w*)=(.*?)(?= [A-Za-z][\w:/]*=|$)")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "PREEMPTED"}


class TestCluster(LocalCluster):
    """A local cluster with what tests need: its environment, and its jobs."""

    __test__ = False  # no class of tests

    @property
    def environ(self) -> dict[str, str]:
        """The whole environment of a subprocess that is to use this cluster."""
        return os.environ | self.variables()

    def run(self, *words: object, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """What a command prints that must succeed."""
        done = subprocess.run(
            [str(word) for word in words], env=self.environ | (env or {}), cwd=cwd, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, *words: object, cwd: Path, env: Mapping[str, str] | None = None) -> str:
        """The id of a new job."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd, env=env).strip()

    def jobs(self) -> dict[str, dict[str, str]]:
        """Job id (7, or 7_3 in an array) -> the fields of `scontrol show job`, of all jobs of the last hour."""
        jobs = {}
        for line in self.ask("scontrol", "show", "job", "--oneliner").splitlines():
            job = {name: value.strip() for name, value in FIELD.findall(line)}
            if "JobId" in job:
                is_member = "ArrayJobId" in job
                jobs[f"{job['ArrayJobId']}_{job['ArrayTaskId']}" if is_member else job["JobId"]] = job
        return jobs

    def wait_for(self, job: str, *states: str, timeout_seconds: float = 60) -> dict[str, str]:
        """The fields of a job once it is in one of `states`; fails the test if it ends in another, or never is."""
        deadline = time.monotonic() + timeout_seconds
        while (fields := self.jobs()[job])["JobState"] not in states:
            if fields["JobState"] in ENDED:
                pytest.fail(f"job {job} is {fields['JobState']}, not {' or '.join(states)}: {self.log_of(fields)}")
            if time.monotonic() > deadline:
                pytest.fail(f"job {job} is still {fields['JobState']} ({fields['Reason']}): {self.log_of(fields)}")
            time.sleep(0.1)
        return fields

    def log_of(self, fields: Mapping[str, str]) -> str:
        """What a job has written to its standard output, for a message."""
        log = Path(fields.get("StdOut", "/dev/null"))
        return log.read_text(errors="replace") if log.is_file() else f"no log {log}"


def free_ports(count: int) -> int:
    """The first of `count` ports that nobody listens on; others than those of another pytest process."""
    for number in range(800):
        first = 10000 + 10 * ((os.getpid() + number) % 800)  # below the ports of jobs and of outgoing connections
        try:
            for port in range(first, first + count):
                require_free(port)
        except ClusterError:
            continue
        return first
    raise ClusterError(f"no {count} free ports between 10000 and 18000")


@contextmanager
def cluster(
    root: Path | None = None, nodes: int = 2, spare: int = 0, port: int | None = None, **layout: int
) -> Iterator[TestCluster]:
    """A running cluster; at the end it is stopped, and its folder removed if it was not given. Skips without Slurm."""
    problem = missing_programs()
    if problem is not None:
        pytest.skip(problem)
    # Not in pytest's folder, whose name is too long for a socket.
    folder = Path(root or tempfile.mkdtemp(prefix="slurm-"))
    started = TestCluster(folder)
    started.start(Layout(nodes=nodes, spare=spare, port=port or free_ports(nodes + spare + 1), **layout))
    try:
        yield started
    finally:
        started.stop()
        assert started.processes() == []
    if root is None:
        shutil.rmtree(folder)
