"""slurm/local_cluster: a real Slurm in one folder, which starts, describes itself, loses nodes, and leaves nothing."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import cluster_processes
import pytest
from local_slurm import ClusterError, Layout, LocalCluster, configuration_text, fake_gpus
from slurm_cluster import COMMAND, LOCAL_CLUSTER, cluster, free_ports, missing_programs

REPOSITORY = Path(__file__).parents[1]
SLEEP = ["--wrap", "srun sleep 300"]


def cluster_command(*words: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, COMMAND, *map(str, words)], capture_output=True, text=True, timeout=120, **options
    )


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """(address, port) of the TCP sockets that these processes listen on."""
    sockets = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            sockets.add(os.readlink(descriptor).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process; what init has not yet reaped is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# Without Slurm


def test_what_is_missing_is_named_with_the_command_that_installs_it(tmp_path):
    copy = tmp_path / "copy"  # on a laptop, say: without the repository
    shutil.copytree(LOCAL_CLUSTER, copy)
    (copy / "local_slurm.py").write_text(
        (copy / "local_slurm.py").read_text().replace('"/usr/local/sbin", "/usr/sbin", "/sbin"', "")
    )
    words = [sys.executable, copy / "cluster.py", "start", "--root", tmp_path / "c"]
    ended = subprocess.run(words, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("cluster.py: error: not installed: munged, slurmctld, slurmd, ")
    assert "apt-get install slurm-wlm munge" in ended.stderr
    assert not (tmp_path / "c").exists()


def test_a_fake_gpu_is_a_device_of_its_own():
    devices = fake_gpus(8)
    assert len(set(devices)) == 8
    assert all(stat.S_ISCHR(os.stat(device).st_mode) for device in devices)
    with pytest.raises(ClusterError, match=r"--gpus 100000: this machine has \d+ character devices"):
        fake_gpus(100000)


def test_spare_nodes_are_taken_last():
    lines = configuration_text(Path("/r"), Layout(nodes=2, spare=1)).splitlines()
    weights = [line.rpartition("Weight=")[2] for line in lines if line.startswith("NodeName=")]
    assert weights == ["1", "1", "100"]
    assert not re.search("@[A-Z]", "".join(lines))


def test_a_folder_with_other_files_is_left_alone():
    with tempfile.TemporaryDirectory() as name:  # tmp_path may be too long for a socket
        folder = Path(name)
        (folder / "thesis.tex").write_text("")
        with pytest.raises(ClusterError, match="holds other files"):
            LocalCluster(folder).write_files(Layout())
        assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_folder_whose_name_is_too_long_for_a_socket(tmp_path):
    with pytest.raises(ClusterError, match="too long for a socket in it: at most 60 characters"):
        LocalCluster(tmp_path / ("x" * 60)).write_files(Layout())


@pytest.mark.parametrize("words", [["stop"], ["status"], ["node", "127.0.0.1", "kill"]], ids=lambda words: words[0])
def test_a_cluster_that_never_was(tmp_path, words):
    ended = cluster_command(words[0], "--root", tmp_path / "none", *words[1:])
    assert ended.returncode == (0 if words == ["stop"] else 2)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("user", "said"), [(0, "was not installed"), (1000, "only root can install it")])
def test_installing_slurm_for_ci_never_fails_the_build(tmp_path, user, said):
    script = (REPOSITORY / ".ci/install-slurm").read_text().replace("PATH=$PATH:/usr/sbin:/sbin", "")
    for name, does in (("id", f"echo {user}"), ("apt-get", "exit 100")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    ended = subprocess.run(["/bin/bash", "-c", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert ended.returncode == 0
    assert said in ended.stdout
    assert "the tests that use it are skipped" in ended.stdout


# A cluster beside the one of the other tests


def test_start_use_and_stop_by_the_command(slurm, tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("c"))
    root = Path("/tmp") / f"slurm-command-{os.getpid()}"
    port = free_ports(3)
    bystander = subprocess.Popen(["sleep", "300"], env=os.environ | {"SLURM_CONF": str(root / "etc/slurm.conf")})
    try:
        started = cluster_command("start", "--root", root, "--nodes", 2, "--spare", 0, "--port", port)
        assert started.returncode == 0, started.stderr
        again = cluster_command("start", "--root", root, "--port", port)
        assert (again.returncode, "runs in" in again.stderr) == (2, True)
        taken = cluster_command("start", "--root", f"{root}-other", "--port", port)
        assert taken.returncode == 2
        assert f"port {port} of 127.0.0.1" in taken.stderr

        shell = f'eval "$({sys.executable} {COMMAND} env --root {root})"; cd {folder}; '
        printed = subprocess.check_output(["bash", "-c", shell + "srun -N2 printenv SLURMD_NODENAME"], text=True)
        assert sorted(printed.split()) == ["127.0.0.1", "127.0.0.2"]
        subprocess.run(["bash", "-c", shell + "sbatch -N2 --wrap 'srun sleep 300'; which sacct"], check=True)
        own = LocalCluster(root)
        own.wait_until("running step", lambda: len(own.step_processes()) >= 4, 20)

        status = cluster_command("status", "--root", root)
        assert status.returncode == 0, status.stderr
        for text in (f"{port} slurmctld", "127.0.0.1, 127.0.0.2", "slurmstepd", "RUNNING", "urgent"):
            assert text in status.stdout
        processes = own.processes()
        open_ports = listening({process.pid for process in processes if process.daemon})
        assert {address for address, _ in open_ports} == {"0100007F"}  # 127.0.0.1
        assert {port for _, port in open_ports} == set(own.layout.ports)
    finally:
        stopped = cluster_command("stop", "--root", root)
        bystander_lives = bystander.poll() is None
        bystander.kill()
        bystander.wait()
    assert stopped.returncode == 0, stopped.stderr
    assert bystander_lives
    assert own.processes() == []
    assert not [process for process in processes if is_alive(process.pid)]
    assert cluster_command("status", "--root", root).returncode == 1
    assert slurm.has_idle_nodes()
    shutil.rmtree(root)


@pytest.mark.parametrize(("node", "is_ours"), [("127.0.0.2", True), ("gpu01", False)])
def test_in_a_job_of_a_real_cluster_it_takes_nothing_of_the_users_for_its_own(tmp_path, node, is_ours):
    """There every process has a SLURMD_NODENAME, and after `cluster.py env` also the SLURM_CONF."""
    conf = tmp_path / "slurm.conf"
    with subprocess.Popen(["sleep", "30"], env={"SLURM_CONF": str(conf), "SLURMD_NODENAME": node}) as process:
        found = {each.pid for each in cluster_processes.find(conf)}
        process.kill()
    assert found == ({process.pid} if is_ours else set())


def test_gpus_are_given_out_and_no_more_than_there_are(slurm, tmp_path):
    asked = ["--nodes=2", "--ntasks-per-node=1", "--mem=100", "--gpus-per-node=2"]
    assert slurm.run("srun", *asked, "printenv", "CUDA_VISIBLE_DEVICES", cwd=tmp_path).split() == ["0,1", "0,1"]
    with pytest.raises(ClusterError, match="Requested node configuration is not available"):
        slurm.ask("sbatch", "--gpus-per-node=3", "--wrap", "true")


def test_the_stand_in_for_sacct_knows_what_became_of_jobs(slurm, tmp_path):
    def states(job: str) -> list[str]:
        lines = slurm.run("sacct", "-o", "JobID,State,NodeList", "--parsable2", "-j", job).splitlines()
        assert lines[0] == "JobID|State|NodeList"
        return lines[1:]

    good = slurm.sbatch("--mem=100", "--wrap", "true", cwd=tmp_path)
    bad = slurm.sbatch("--mem=100", "--job-name", "two words", "--array=0-1", "--wrap", "exit 3", cwd=tmp_path)
    waiting = slurm.sbatch("--mem=100", f"--dependency=afterok:{bad}", *SLEEP, cwd=tmp_path)
    assert states(waiting) == [f"{waiting}|PENDING|None assigned"]
    slurm.run("scancel", waiting)
    slurm.wait_for(good, "COMPLETED")
    for member in (0, 1):
        slurm.wait_for(f"{bad}_{member}", "FAILED")
    assert states(good) == [f"{good}|COMPLETED|127.0.0.1"]
    assert sorted(states(bad)) == [f"{bad}_{member}|FAILED|127.0.0.1" for member in (0, 1)]
    assert states(f"{bad}_1") == [f"{bad}_1|FAILED|127.0.0.1"]
    assert states(waiting)[0].startswith(f"{waiting}|CANCELLED|")
    line = slurm.run("sacct", "-n", "-P", "-X", "-j", bad, "--format=JobName%30,ExitCode").splitlines()[0]
    assert line == "two words|3:0"


def test_the_stand_in_remembers_what_the_controller_has_forgotten_and_steps_aside_elsewhere(slurm, tmp_path):
    job = slurm.sbatch("--mem=100", "--wrap", "true", cwd=tmp_path)
    slurm.wait_for(job, "COMPLETED")
    for name, prints in (("scontrol", "No jobs in the system"), ("sacct", "the real one")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {prints}\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{slurm.root / 'bin'}:{tmp_path}:{os.environ['PATH']}"}
    asked = ["sacct", "-n", "-P", "-o", "JobID,State", "-j", job]
    slurm.wait_until("line about the job", lambda: f"JobId={job} " in (slurm.root / "log/jobcomp.txt").read_text(), 20)
    assert slurm.run(*asked, env=environ) == f"{job}|COMPLETED\n"
    assert slurm.run(*asked, env=environ | {"SLURM_CONF": "/etc/slurm/slurm.conf"}) == "the real one\n"


# Long


@pytest.mark.slurm
def test_a_lost_node_is_replaced_by_the_spare_one_and_comes_back(tmp_path):
    with cluster(nodes=2, spare=1) as own:
        job = own.sbatch("--nodes=2", "--mem=100", *SLEEP, cwd=tmp_path)
        assert own.wait_for(job, "RUNNING")["NodeList"] == "127.0.0.[1-2]"
        own.kill_node("127.0.0.2")
        assert own.processes_on("127.0.0.2") == []
        own.wait_until("restart", lambda: own.jobs()[job]["Restarts"] == "1", 180)
        assert own.wait_for(job, "RUNNING")["NodeList"] == "127.0.0.[1,3]"
        own.start_node("127.0.0.2")
        own.run("scancel", job)
        own.wait_until("three idle nodes", own.has_idle_nodes, 30)


@pytest.mark.slurm
def test_an_urgent_job_takes_the_nodes_after_a_warning(slurm, tmp_path):
    script = "trap 'echo warned; exit 0' USR1; echo begun; while :; do sleep 0.2; done"
    asked = ["--nodes=3", "--exclusive", "--mem=100", "--signal=B:USR1@60", "--open-mode=append", "--output=out"]
    job = slurm.sbatch(*asked, "--wrap", script, cwd=tmp_path)
    slurm.wait_for(job, "RUNNING")
    slurm.wait_until(
        "first words", lambda: (tmp_path / "out").exists() and "begun" in (tmp_path / "out").read_text(), 20
    )
    urgent = slurm.sbatch("--partition=urgent", "--nodes=3", "--exclusive", "--mem=100", "--wrap", "true", cwd=tmp_path)
    slurm.wait_for(urgent, "COMPLETED")
    assert "warned" in (tmp_path / "out").read_text()
    slurm.run("scancel", job)


@pytest.mark.slurm
@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to become another user")
@pytest.mark.skipif(missing_programs() is not None, reason=f"{missing_programs()}")
@pytest.mark.skipif(shutil.which("setpriv") is None or not Path("/usr/bin/python3").exists(), reason="no setpriv")
def test_an_ordinary_user(tmp_path):
    copy = Path(f"/tmp/slurm-nobody-{os.getpid()}")  # which the user can read
    shutil.copytree(LOCAL_CLUSTER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    os.chmod(copy, 0o755)
    root = copy / "c"
    root.mkdir()
    shutil.chown(root, "nobody")
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    user += ["/usr/bin/python3", copy / "cluster.py"]

    def command(*words: object) -> str:
        ended = subprocess.run([*user, *map(str, words)], cwd="/", capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    try:
        command("start", "--root", root, "--nodes", 2, "--spare", 0, "--port", free_ports(3))
        shell = [
            *user[:-2],
            "bash",
            "-c",
            f'eval "$(/usr/bin/python3 {copy}/cluster.py env --root {root})"; srun -N2 id -un',
        ]
        assert subprocess.check_output(shell, cwd="/", text=True).split() == ["nobody", "nobody"]
    finally:
        command("stop", "--root", root)
    assert LocalCluster(root).processes() == []
    shutil.rmtree(copy)
