"""A group under torchrun, whose agent holds the store and starts the processes again when one has failed."""

import re
import subprocess
import sys

import pytest
from processes import free_port

WORK = """
import os

import torch

from revvideo.distributed.env import current_process
from revvideo.distributed.group import open_group
from revvideo.exit_codes import run_guarded


def work():
    for attempt in ("first", "second"):  # two groups, one after the other
        with open_group(current_process(), torch.device("cpu"), timeout_seconds=20) as group:
            ranks = group.gather(group.rank, "ranks")
            if group.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and attempt == "second":
                raise ValueError("no good")
            group.barrier("end")
            print(f"{attempt}: {ranks}", flush=True)


raise SystemExit(run_guarded(work, prefix=f"[rank {current_process().rank}] "))
"""


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", ["standalone", "static"])
def test_a_failure_is_told_and_forgotten_at_the_restart(rendezvous, tmp_path):
    script = tmp_path / "work.py"
    script.write_text(WORK, "utf-8")
    meeting = ["--standalone"] if rendezvous == "standalone" else ["--master-port", str(free_port())]
    command = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", "2", "--max-restarts", "1"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    came = re.findall(r"(first|second): \[0, 1\]", done.stdout)
    assert sorted(came) == ["first"] * 4 + ["second"] * 2
    told = [line for line in done.stderr.splitlines() if "ValueError: no good" in line]
    assert re.match(r"rank 1 \(\S+, process \d+\) failed after 'ranks': ValueError: no good$", told[0]), done.stderr
