#!/usr/bin/env python3
"""A throw-away Slurm cluster of several virtual nodes on this one machine, to try submissions and to test them.

    cluster.py start                 # two nodes of 4 cores and 2 fake GPUs, and a spare one
    eval "$(cluster.py env)"         # this shell's sbatch, srun, squeue and sacct talk to it
    cluster.py status
    cluster.py node 127.0.0.2 kill   # a node loses its power; `node 127.0.0.2 start` brings it back
    cluster.py stop

It needs Slurm and munge, which it does not install, and no rights: it runs as the user who starts it. Everything that
it writes is in one folder (--root), it listens on 127.0.0.1 only, and it ends what it has started and nothing else.
Another cluster can run beside it with another --root and --port.
"""

import argparse
import getpass
import shlex
import sys
import tempfile
from pathlib import Path

from local_slurm import ClusterError, Layout, LocalCluster

DEFAULT_ROOT = Path(tempfile.gettempdir()) / f"local-slurm-{getpass.getuser()}"


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "start": "start it, without the jobs of an earlier time",
        "stop": "cancel its jobs and end its processes; the folder with the logs stays",
        "status": "its nodes, ports, processes and jobs; exit code 1 if it does not run",
        "env": "print the shell lines that make it this shell's cluster",
        "node": "kill or start one node",
    }
    command = {name: commands.add_parser(name, help=text, description=text) for name, text in helps.items()}
    for each in command.values():
        each.add_argument("--root", type=Path, default=DEFAULT_ROOT, help="its folder (default: %(default)s)")
    default = Layout()
    options = {
        "nodes": "virtual nodes",
        "spare": "further nodes, used when one of the others is lost",
        "cpus": "cores of each, however many there are",
        "gpus": "fake GPUs of each",
        "memory": "MiB of each, however much there is",
        "port": "the first of nodes + spare + 1 TCP ports",
    }
    for name, text in options.items():
        text = f"{text} (default: %(default)s)"
        command["start"].add_argument(f"--{name}", type=int, default=getattr(default, name), help=text)
    command["node"].add_argument("name", help="such as 127.0.0.2")
    command["node"].add_argument("action", choices=["kill", "start"])
    return parser.parse_args(words)


def print_shell_lines(cluster: LocalCluster) -> None:
    print(f"export SLURM_CONF={shlex.quote(str(cluster.configuration))}")
    print(f'export PATH={shlex.quote(str(cluster.root / "bin"))}:"$PATH"')


def print_status(cluster: LocalCluster) -> int:
    layout, processes = cluster.layout, cluster.processes()
    first, *others = layout.ports
    print(f"folder     {cluster.root} (configuration in etc, logs in log)")
    print(f"ports      127.0.0.1: {first} slurmctld, {others[0]}-{others[-1]} nodes")
    print(f"nodes      {layout.nodes} and {layout.spare} spare: {', '.join(layout.names)}")
    print(f"each has   {layout.cpus} cores, {layout.gpus} GPUs, {layout.memory} MiB")
    print(f"processes  {len(processes) or 'none: it does not run'}")
    for process in processes:
        print(f"  {process.pid:>7}  {process.node or '-':9}  {process.command}")
    if not cluster.is_running():
        return 1
    print(cluster.ask("sinfo", "--format=%9P %5a %6t %5D %N").rstrip())
    print(cluster.ask("squeue", "--format=%10i %10P %20j %10T %10M %20R").rstrip())
    return 0


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    cluster = LocalCluster(args.root)
    try:
        if args.command == "start":
            cluster.start(Layout(args.nodes, args.spare, args.cpus, args.gpus, args.memory, args.port))
            print(f"{len(cluster.layout.names)} nodes are idle. To use them:")
            print(f'  eval "$({shlex.quote(sys.argv[0])} env --root {shlex.quote(str(cluster.root))})"')
        elif args.command == "stop":
            cluster.stop()
            print(f"nothing of {cluster.root} runs any more")
        elif args.command == "status":
            return print_status(cluster)
        elif args.command == "env":
            print_shell_lines(cluster)
        elif args.action == "kill":
            cluster.kill_node(args.name)
        else:
            cluster.start_node(args.name)
    except (ClusterError, TimeoutError) as error:
        print(f"cluster.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
