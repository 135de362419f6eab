"""The processes of a job find each other: an address that resolves, a free port, another one for every job."""

import os
import shutil
import socket
import subprocess
import sys

import pytest

from revvideo.errors import InputError
from revvideo.launch import prologue
from revvideo.launch.prologue import candidate_ports, free_port, master_address, master_port

TWO_NODES = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "17", "SLURMD_NODENAME": "127.0.0.2"}


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """Put a scontrol on PATH that prints the text it is given, in place of any other."""

    def install(text: str) -> None:
        script = tmp_path / "scontrol"
        script.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return install


def test_the_address_is_what_slurm_reaches_the_node_by(scontrol):
    scontrol("NodeName=gpu01 Arch=x86_64 NodeAddr=127.0.0.9 NodeHostName=gpu01")
    assert master_address(TWO_NODES | {"SLURMD_NODENAME": "gpu01"}) == "127.0.0.9"


def test_an_address_that_does_not_resolve_is_not_taken(scontrol):
    scontrol("NodeName=127.0.0.2 NodeAddr=no.such.host.invalid")
    assert master_address(TWO_NODES) == "127.0.0.2"


def test_without_an_address_it_says_what_was_tried(scontrol, monkeypatch):
    scontrol("NodeName=gpu01 NodeAddr=a.invalid")
    monkeypatch.setattr(socket, "gethostname", lambda: "b.invalid")
    monkeypatch.setattr(socket, "getfqdn", lambda: "b.invalid")
    with pytest.raises(InputError, match=r"tried a\.invalid, c\.invalid, b\.invalid.*--env MASTER_ADDR"):
        master_address(TWO_NODES | {"SLURMD_NODENAME": "c.invalid"})


def test_one_node_needs_no_name(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert master_address({"SLURM_JOB_NUM_NODES": "1"}) == "127.0.0.1"


def test_ports_are_outside_of_those_that_the_kernel_gives_away():
    ports = candidate_ports((32768, 60999))
    assert ports[0] == 10000
    assert {32767, 61000, 65535} <= set(ports)
    assert not set(ports) & set(range(32768, 61000))
    assert len(candidate_ports((1024, 65535))) == 65536 - 10000  # it gives all away: better one of them than none


def test_jobs_and_restarts_have_ports_of_their_own(monkeypatch):
    monkeypatch.setattr(prologue, "free_port", lambda ports: ports[0])
    restarts = ({}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_RESTART_COUNT": "2"})
    ports = [master_port(TWO_NODES | {"SLURM_JOB_ID": str(job)} | more) for job in range(900, 950) for more in restarts]
    assert len(set(ports)) == len(ports)
    assert master_port({"SLURM_JOB_ID": "4294967295"}) > 0


def test_a_port_that_is_taken_is_passed_over():
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("", 0)) as other,
        socket.socket() as third,
    ):
        third.bind(("127.0.0.1", 0))
        taken = [server.getsockname()[1] for server in (one, other)]
        free = third.getsockname()[1]
        third.close()
        assert free_port([*taken, free]) == free
        with pytest.raises(InputError, match="none of 2 ports"):
            free_port(taken)


def run_prologue(**variables: str) -> str:
    """What a shell has after it has evaluated the lines."""
    lines = f'eval "$({sys.executable} -m revvideo.launch.prologue)"; echo "$MASTER_ADDR|$MASTER_PORT"'
    done = subprocess.run(["bash", "-c", lines], env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_shell_takes_the_lines():
    address, port = run_prologue(SLURM_JOB_ID="3", SLURM_JOB_NUM_NODES="1").split("|")
    assert address == "127.0.0.1"
    assert 10000 <= int(port) <= 65535


def test_what_the_user_has_set_stays():
    assert run_prologue(MASTER_ADDR="gpu 01", MASTER_PORT="29500") == "gpu 01|29500"


def test_a_node_of_the_real_cluster_has_an_address(slurm, monkeypatch):
    for name, value in slurm.variables().items():
        monkeypatch.setenv(name, value)
    assert shutil.which("scontrol")
    assert prologue._node_address("127.0.0.2") == "127.0.0.1"
    assert prologue._node_address("nosuch") == ""
