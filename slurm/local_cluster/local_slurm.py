"""A Slurm cluster of several virtual nodes on this machine: one slurmctld, one slurmd a node, a munge of their own.

Nothing leaves the folder of the cluster but sockets on 127.0.0.1. Every virtual node is a `slurmd -N NAME`. The names
are 127.0.0.1, 127.0.0.2, ..., so that a node's name is an address of this machine that needs no /etc/hosts.
"""

import contextlib
import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cluster_processes
from cluster_processes import DAEMON_VARIABLE, NODE_PREFIX, Process

HERE = Path(__file__).resolve().parent
# Program -> Debian's package of it.
PROGRAMS = {
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "scontrol": "slurm-wlm",
    "sinfo": "slurm-wlm",
    "squeue": "slurm-wlm",
    "scancel": "slurm-wlm",
}
DAEMON_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # an ordinary user's PATH may lack them
# A fake GPU has to be a character device of its own; nobody opens it.
COMMON_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "console", "kmsg", "fuse", "net/tun")
MAX_ROOT_LENGTH = 60  # characters: a unix socket in it may have a path of 107
START_SECONDS, STOP_SECONDS, POLL_SECONDS = 30, 30, 0.05


class ClusterError(Exception):
    """One message for the user: what is wrong, and what to do about it."""


@dataclass(frozen=True)
class Layout:
    """What the cluster pretends to be.

    Attributes:
        nodes: virtual nodes that jobs are put on first.
        spare: further nodes, which jobs get only when no other is left, so after one of the first has failed.
        cpus, gpus, memory: cores, GPUs and MiB of memory of each node; they are counted, not there.
        port: slurmctld listens on it, the nodes on the ones after it.
    """

    nodes: int = 2
    spare: int = 1
    cpus: int = 8
    gpus: int = 2
    memory: int = 16000
    port: int = 18000

    @property
    def names(self) -> list[str]:
        return [f"{NODE_PREFIX}{number}" for number in range(1, self.nodes + self.spare + 1)]

    @property
    def ports(self) -> list[int]:
        return list(range(self.port, self.port + len(self.names) + 1))


def find_program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *DAEMON_FOLDERS]))


def missing_programs() -> str | None:
    """One message about what is not installed, with the command that installs it; None if all is there."""
    missing = [name for name in PROGRAMS if find_program(name) is None]
    if not missing:
        return None
    packages = " ".join(sorted({PROGRAMS[name] for name in missing}, reverse=True))
    return f"not installed: {', '.join(missing)}. On Debian and Ubuntu: apt-get install {packages}"


class LocalCluster:
    """The cluster whose files are in `root`. It may have been started by another process, or not at all yet."""

    def __init__(self, root: Path | str):
        self.root = Path(root).resolve()
        self.configuration = self.root / "etc/slurm.conf"

    # What it is

    @property
    def layout(self) -> Layout:
        """As it was started. Raises ClusterError if it never was."""
        try:
            return Layout(**json.loads((self.root / "cluster.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ClusterError(f"no cluster in {self.root}: `cluster.py start --root {self.root}` makes one") from None

    def variables(self) -> dict[str, str]:
        """What a shell needs to use the cluster: SLURM_CONF, and PATH with the stand-in for sacct first."""
        return {"SLURM_CONF": str(self.configuration), "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}"}

    def ask(self, *words: str) -> str:
        """What a command of Slurm prints. Raises ClusterError with its complaint."""
        environ = os.environ | self.variables()
        answer = subprocess.run(words, env=environ, capture_output=True, text=True)
        if answer.returncode != 0:
            raise ClusterError(f"{' '.join(words)}: {answer.stderr.strip() or f'exit code {answer.returncode}'}")
        return answer.stdout

    def processes(self) -> list[Process]:
        """Daemons of this cluster, then processes of its jobs."""
        return cluster_processes.find(self.configuration)

    def processes_on(self, node: str) -> list[Process]:
        return [process for process in self.processes() if process.node == node]

    def is_running(self) -> bool:
        return any(process.daemon == "slurmctld" for process in self.processes())

    # Start

    def start(self, layout: Layout) -> None:
        """Start it anew, without the jobs of an earlier time, and wait until its nodes are idle.

        Raises ClusterError if something is not installed, runs already or does not come up; then nothing stays running.
        """
        problem = missing_programs()
        if problem is not None:
            raise ClusterError(problem)
        if self.processes():
            raise ClusterError(f"a cluster runs in {self.root} already: `cluster.py stop --root {self.root}` ends it")
        for port in layout.ports:
            require_free(port)
        self.write_files(layout)
        try:
            self.start_munge()
            self.start_daemon("slurmctld", "-c", "-f", str(self.configuration))
            for name in layout.names:
                self.start_node(name)
            self.wait_until("idle nodes", self.has_idle_nodes, START_SECONDS)
        except BaseException:
            self.stop()
            raise

    def write_files(self, layout: Layout) -> None:
        if len(str(self.root)) > MAX_ROOT_LENGTH:
            raise ClusterError(f"{self.root} is too long for a socket in it: at most {MAX_ROOT_LENGTH} characters")
        if self.root.exists() and any(self.root.iterdir()) and not (self.root / "cluster.json").exists():
            raise ClusterError(f"{self.root} holds other files: give the cluster an empty or a new folder by --root")
        for name in ("etc", "run", "state", "spool", "log", "bin"):
            shutil.rmtree(self.root / name, ignore_errors=True)
            (self.root / name).mkdir(parents=True, mode=0o755)
        for name in layout.names:
            (self.root / "spool" / name).mkdir()
        (self.root / "cluster.json").write_text(json.dumps(asdict(layout)), encoding="utf-8")
        (self.root / "etc/slurm.conf").write_text(configuration_text(self.root, layout), encoding="utf-8")
        gpus = "".join(f"Name=gpu File={device}\n" for device in fake_gpus(layout.gpus))
        (self.root / "etc/gres.conf").write_text(gpus, encoding="utf-8")
        shutil.copy2(HERE / "bin/sacct", self.root / "bin/sacct")

    def start_munge(self) -> None:
        run, key = self.root / "run", self.root / "etc/munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        files = [f"--key-file={key}", f"--socket={run / 'munge.socket'}", f"--pid-file={run / 'munged.pid'}"]
        files += [f"--log-file={self.root / 'log/munged.log'}", f"--seed-file={run / 'munged.seed'}"]
        self.start_daemon("munged", "--force", *files)  # --force: a parent of the folder may be open to all, as /tmp is

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node, such as one that was killed."""
        if name not in self.layout.names:
            raise ClusterError(f"no node {name!r}: there are {', '.join(self.layout.names)}")
        if self.processes_on(name):
            raise ClusterError(f"node {name} runs already")
        self.start_daemon("slurmd", "-N", name, "-f", str(self.configuration), node=name)

    def start_daemon(self, name: str, *words: str, node: str | None = None) -> None:
        """Start a daemon, which leaves for the background as soon as it is ready."""
        log = self.root / f"log/{name}.start"
        with log.open("ab") as out:
            # Nothing of this shell's environment but PATH: there may be a job of another cluster around us.
            environ = {"PATH": os.environ["PATH"], "SLURM_CONF": str(self.configuration), DAEMON_VARIABLE: name}
            if node is not None:
                environ["SLURMD_NODENAME"] = node
            code = subprocess.call(
                [find_program(name), *words],
                env=environ,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        if code != 0:
            raise ClusterError(f"{name} ended with {code}:\n{log.read_text(errors='replace').strip()}")

    def has_idle_nodes(self) -> bool:
        try:
            states = self.ask("sinfo", "--noheader", "--Node", "--partition=train", "--format=%T").split()
        except ClusterError:  # slurmctld does not listen yet
            return False
        return states == ["idle"] * len(self.layout.names)

    def wait_until(self, what: str, is_so: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                raise ClusterError(f"no {what} after {seconds} s: see the logs in {self.root / 'log'}")
            time.sleep(POLL_SECONDS)

    # Failure and end

    def kill_node(self, name: str) -> None:
        """A node loses its power: SIGKILL for its slurmd and all that it runs."""
        if not self.processes_on(name):
            raise ClusterError(f"node {name} does not run")
        cluster_processes.kill(lambda: self.processes_on(name))

    def stop(self) -> None:
        """End the jobs and then the daemons; munge last, since the others cannot speak without it."""
        if self.is_running():
            with contextlib.suppress(ClusterError):  # what does not listen any more is killed below
                if jobs := self.ask("squeue", "--noheader", "--format=%A").split():
                    self.ask("scancel", *jobs)
                self.wait_until("end of the jobs", self.is_without_jobs, STOP_SECONDS)
        cluster_processes.end(self.step_processes)
        for daemon in ("slurmd", "slurmctld", "munged"):
            cluster_processes.end(lambda daemon=daemon: [p for p in self.processes() if p.daemon == daemon])

    def step_processes(self) -> list[Process]:
        """Those of nodes, without their slurmd."""
        return [process for process in self.processes() if process.node and not process.daemon]

    def is_without_jobs(self) -> bool:
        states = set(self.ask("squeue", "--noheader", "--format=%T").split())
        return states <= {"COMPLETING"} and not self.step_processes()  # a job on a killed node completes much later


def configuration_text(root: Path, layout: Layout) -> str:
    host = socket.gethostname().partition(".")[0]
    has = f"CPUs={layout.cpus} Sockets=1 CoresPerSocket={layout.cpus} ThreadsPerCore=1 RealMemory={layout.memory}"
    if layout.gpus:
        has += f" Gres=gpu:{layout.gpus}"
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} {has} Weight={weight}"
        for name, port, weight in zip(layout.names, layout.ports[1:], [1] * layout.nodes + [100] * layout.spare)
    ]
    values = {
        "USER": pwd.getpwuid(os.getuid()).pw_name,
        "HOST": host,
        "PORT": layout.port,
        "ROOT": root,
        "MEMORY_PER_CPU": layout.memory // layout.cpus,
        "NODES": "\n".join(nodes),
    }
    text = (HERE / "slurm.conf.in").read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def fake_gpus(count: int) -> Sequence[str]:
    """Character devices that stand for the GPUs of a node."""
    common = [Path("/dev", name) for name in COMMON_DEVICES]
    others = [path for path in sorted(Path("/dev").iterdir()) if path not in common and "nvidia" not in path.name]
    found = [str(path) for path in [*common, *others] if path.exists() and stat.S_ISCHR(path.stat().st_mode)]
    if len(found) < count:
        raise ClusterError(f"--gpus {count}: this machine has {len(found)} character devices to stand for GPUs")
    return found[:count]


def require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ClusterError(f"port {port} of 127.0.0.1: {error.strerror}. Choose others by --port") from None
