"""Which process of how many: every launcher's variables become the same numbers, and what does not fit is an error."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from revvideo.distributed.env import Process, current_process, environment_of, machine_processes
from revvideo.distributed.slurm_env import first_host
from revvideo.errors import InputError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "ROLE_RANK": "5",
    "MASTER_ADDR": "gpu01",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
# As Slurm 22.05 sets them in the second of two nodes with two tasks each (`srun -N2 --ntasks-per-node=2`).
SRUN = {
    "SLURM_JOB_ID": "57",
    "SLURM_STEP_ID": "3",
    "SLURM_STEPID": "3",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NNODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "127.0.0.[1-2]",
    "SLURM_JOB_NODELIST": "127.0.0.[1-2]",
}
SUBMITIT = {
    "SUBMITIT_EXECUTOR": "local",
    "SUBMITIT_LOCAL_JOB_ID": "4711",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
    "SUBMITIT_LOCAL_NODEID": "0",
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_LOCALID": "1",
}
BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    assert set(names) <= set(environ)
    return {name: value for name, value in environ.items() if name not in names}


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(InputError) as error:
        current_process(environ)
    return str(error.value)


# Every launcher


def test_nothing_set_is_a_plain_process():
    assert current_process({"HOME": "/", "MASTER_ADDR": "gpu01", "MASTER_PORT": "1"}) == Process()
    assert Process().is_main


def test_torchrun():
    process = current_process(TORCHRUN)
    assert process == Process(5, 8, 1, 4, 1, 2, "gpu01", 29500, source="torchrun")
    assert not process.is_main


def test_variables_set_by_hand():
    assert current_process(BY_HAND) == Process(1, 2, 1, 2, 0, 1, "127.0.0.1", 29500, source="environment")
    for loopback in ("localhost", "::1"):
        assert current_process(BY_HAND | {"MASTER_ADDR": loopback}).local_world_size == 2
    several = BY_HAND | {"MASTER_ADDR": "gpu01", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert current_process(several) == Process(3, 4, 1, 2, 1, 2, "gpu01", 29500, source="environment")
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert current_process(alone) == Process(source="environment")


def test_srun():
    process = current_process(SRUN)
    assert process == Process(3, 4, 1, 2, 1, 2, "127.0.0.1", process.master_port, source="srun")
    assert current_process(SRUN | {"MASTER_ADDR": "", "MASTER_PORT": ""}) == process
    named = SRUN | {"MASTER_ADDR": "login", "MASTER_PORT": "1234"}
    assert current_process(named) == Process(3, 4, 1, 2, 1, 2, "login", 1234, source="srun")


def test_the_ranks_of_a_step_agree_and_other_steps_meet_elsewhere():
    def places(job: int, step: int) -> set[tuple[str, int]]:
        found = set()
        for node, local in itertools.product(range(2), range(2)):
            numbers = {"PROCID": 2 * node + local, "LOCALID": local, "NODEID": node, "JOB_ID": job, "STEP_ID": step}
            process = current_process(SRUN | {f"SLURM_{name}": str(value) for name, value in numbers.items()})
            assert process.rank == 2 * node + local
            found.add((process.master_addr, process.master_port))
        return found

    jobs = [places(job, step) for job in range(1, 40) for step in range(4)]
    assert all(len(found) == 1 for found in jobs)
    ports = [port for found in jobs for _, port in found]
    assert len(set(ports)) == len(ports)
    assert all(20000 <= port < 32768 for port in ports)  # where no outgoing connection takes one


def test_a_step_of_one_node_meets_on_the_loopback():
    """The name of a host need not resolve on the host itself."""
    one = SRUN | {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0", "SLURM_PROCID": "1"}
    process = current_process(one | {"SLURM_STEP_NODELIST": "gpu07"})  # the allocation itself has two nodes
    assert (process.world_size, process.local_world_size, process.num_machines) == (2, 2, 1)
    assert process.master_addr == "127.0.0.1"


def test_tasks_dealt_out_in_turn():
    """srun -m cyclic: rank 1 is the first task of the second node."""
    process = current_process(SRUN | {"SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"})
    assert (process.rank, process.local_rank, process.machine) == (1, 0, 1)


@pytest.mark.parametrize("step", ["4294967290", "4294967291", "4294967292", None])
def test_the_shell_of_sbatch_and_salloc_is_a_plain_process(step):
    shell = without(SRUN, "SLURM_STEP_ID", "SLURM_STEPID") | {"SLURM_PROCID": "0"}
    if step is not None:
        shell["SLURM_STEP_ID"] = step
    assert current_process(shell) == Process()


def test_submitits_local_executor():
    process = current_process(SUBMITIT)
    assert process == Process(1, 2, 1, 2, 0, 1, "127.0.0.1", process.master_port, source="submitit")
    first = SUBMITIT | {"SUBMITIT_LOCAL_GLOBALID": "0", "SUBMITIT_LOCAL_LOCALID": "0"}
    assert process.master_port == current_process(first).master_port
    assert current_process(SUBMITIT | {"MASTER_PORT": "99"}).master_port == 99
    assert current_process(SUBMITIT | {"SUBMITIT_EXECUTOR": "debug"}) == Process()


def test_tasks_of_the_real_local_executor(tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.LocalExecutor(folder=tmp_path)
    executor.update_parameters(tasks_per_node=3, timeout_min=1)
    processes = executor.submit(current_process).results()
    port = processes[0].master_port
    assert processes == [Process(rank, 3, rank, 3, 0, 1, "127.0.0.1", port, source="submitit") for rank in range(3)]


def test_the_more_particular_launcher_wins():
    """torchrun started by srun, a local executor inside a Slurm job."""
    assert current_process(SRUN | TORCHRUN).source == "torchrun"
    assert current_process(SUBMITIT | BY_HAND).source == "environment"
    assert current_process(SRUN | SUBMITIT).source == "submitit"


# Errors


@pytest.mark.parametrize(
    ("environ", "parts"),
    [
        ({"RANK": "0"}, ["RANK='0', WORLD_SIZE not set, LOCAL_RANK not set"]),
        ({"RANK": "0", "WORLD_SIZE": "2"}, ["LOCAL_RANK not set"]),
        (without(BY_HAND, "MASTER_ADDR"), ["RANK='1'", "WORLD_SIZE='2'", "MASTER_ADDR not set", "MASTER_PORT='29500'"]),
        (without(TORCHRUN, "MASTER_PORT"), ["MASTER_PORT not set", "MASTER_ADDR='gpu01'", "GROUP_RANK='1'"]),
        (BY_HAND | {"MASTER_ADDR": "gpu01"}, ["LOCAL_WORLD_SIZE not set", "learning rate"]),
        (without(SRUN, "SLURM_PROCID"), ["SLURM_PROCID not set", "SLURM_NTASKS='4'", "SLURM_JOB_ID='57'"]),
        (without(SRUN, "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"), ["SLURM_NTASKS not set"]),
        (without(SRUN, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"), ["MASTER_ADDR not set", "SLURM_PROCID='3'"]),
        (without(SRUN, "SLURM_NNODES", "SLURM_STEP_NUM_NODES") | {"MASTER_ADDR": "a"}, ["SLURM_NNODES not set"]),
        (
            without(SUBMITIT, "SUBMITIT_LOCAL_GLOBALID"),
            ["SUBMITIT_LOCAL_GLOBALID not set", "SUBMITIT_LOCAL_NTASKS='2'"],
        ),
        ({"WORLD_SIZE": "2"} | SRUN, ["RANK not set", "WORLD_SIZE='2'", "SLURM_PROCID='3'"]),
    ],
)
def test_an_incomplete_environment_lists_what_was_found(environ, parts):
    message = refusal(environ)
    assert "the distributed environment is incomplete: " in message
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_world_of_two_that_cannot_meet_is_an_error_on_every_rank(rank):
    """Never a silent world of one."""
    environ = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    message = refusal(environ)
    assert f"RANK='{rank}', WORLD_SIZE='2'" in message
    assert "MASTER_ADDR not set, MASTER_PORT not set" in message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"RANK": "8"}, "LOCAL_RANK <= RANK < WORLD_SIZE"),
        ({"RANK": "-1"}, "LOCAL_RANK <= RANK < WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE >= 1"),
        ({"LOCAL_RANK": "6"}, "LOCAL_RANK <= RANK"),
        ({"LOCAL_RANK": "4"}, "the local rank 4 is not below the 4 processes of a machine"),
        ({"WORLD_SIZE": "9"}, "9 processes are not 4 on each of 2 machines"),
        ({"LOCAL_WORLD_SIZE": "3"}, "8 processes are not 3 on each of 2 machines"),
        ({"LOCAL_WORLD_SIZE": "0"}, "8 processes are not 0 on each of 2 machines"),
        ({"GROUP_WORLD_SIZE": "1"}, "8 processes are not 4 on each of 1 machines"),
        ({"GROUP_RANK": "2"}, "machine 2 is not one of 0 .. 1"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT 70000 is no port"),
    ],
)
def test_an_environment_that_contradicts_itself(changes, reason):
    message = refusal(TORCHRUN | changes)
    assert "contradicts itself: RANK=" in message
    assert reason in message


def test_a_rank_that_is_not_where_it_says():
    message = refusal(without(TORCHRUN, "GROUP_RANK") | {"LOCAL_RANK": "2"})
    assert "RANK = machine * LOCAL_WORLD_SIZE + LOCAL_RANK" in message


def test_nodes_with_unequal_numbers_of_tasks():
    message = refusal(SRUN | {"SLURM_STEP_NUM_TASKS": "5"})
    assert "5 processes are not 2 on each of 2 machines" in message


@pytest.mark.parametrize(("name", "value"), [("RANK", ""), ("WORLD_SIZE", "two"), ("MASTER_PORT", "http")])
def test_what_is_no_number(name, value):
    message = refusal(TORCHRUN | {name: value})
    assert "not a whole number" in message
    assert f"{name}={value!r}" in message


# Slurm's lists of hosts


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("gpu07", "gpu07"),
        ("127.0.0.[1-2],gpu[01-03]", "127.0.0.1"),
        ("gpu[01-03,07],127.0.0.1", "gpu01"),
        ("gpu[09,11-12]", "gpu09"),
        ("rack[1,3]-node[007-009].cluster,login", "rack1-node007.cluster"),
        ("login,gpu[1-2]", "login"),
        ("n[5]", "n5"),
    ],
)
def test_the_first_host_of_a_list(node_list, host):
    assert first_host(node_list) == host


@pytest.mark.parametrize("node_list", ["", ",gpu1", "gpu[1-2", "gpu[]", "gpu]1[", "gpu 1", "gpu[a-b]"])
def test_a_list_that_cannot_be_read(node_list):
    with pytest.raises(InputError, match="MASTER_ADDR"):
        first_host(node_list)


# Starting processes


@pytest.mark.parametrize(
    "process", [Process(5, 8, 1, 4, 1, 2, "gpu01", 29500), Process(1, 4, 0, 2, 1, 2, "a", 1), Process()]
)
def test_a_child_finds_its_place_again(process):
    variables = environment_of(process)
    json.dumps(variables)
    assert all(isinstance(value, str) for value in variables.values())
    found = current_process(SRUN | variables)  # whatever else is there
    assert found == Process(**(vars(process) | {"source": "environment"}))


def test_pyslowfasts_numbering_of_machines():
    machines = [
        machine_processes(num_processes=2, num_machines=3, machine=machine, init_method="tcp://gpu01:29500")
        for machine in range(3)
    ]
    everybody = [process for processes in machines for process in processes]
    assert [process.rank for process in everybody] == list(range(6))
    for process in everybody:
        assert process.rank == process.machine * 2 + process.local_rank
        assert current_process(environment_of(process)) == process
        assert (process.master_addr, process.master_port, process.num_machines) == ("gpu01", 29500, 3)


def test_one_machine_needs_no_meeting_point():
    first, second = machine_processes(num_processes=2, num_machines=1, machine=0, init_method="")
    assert first.master_addr == second.master_addr == "127.0.0.1"
    assert first.master_port == second.master_port > 1023


@pytest.mark.parametrize(
    "init_method", ["env://", "tcp://gpu01", "gpu01:29500", "tcp://:29500", "tcp://a:99999", "tcp://a:x"]
)
def test_a_meeting_point_that_is_none(init_method):
    with pytest.raises(InputError) as error:
        machine_processes(num_processes=2, num_machines=2, machine=0, init_method=init_method)
    assert init_method in str(error.value)
    assert "tcp://HOST:PORT" in str(error.value)


def test_several_machines_without_a_meeting_point_and_a_machine_that_is_not_there():
    with pytest.raises(InputError, match="--init_method tcp://HOST:PORT"):
        machine_processes(num_processes=2, num_machines=2, machine=0, init_method="")
    with pytest.raises(InputError, match="SHARD_ID is 2"):
        machine_processes(num_processes=2, num_machines=2, machine=2, init_method="tcp://a:1")


def test_processes_of_the_real_torchrun(tmp_path):
    script = tmp_path / "place.py"
    script.write_text(
        "import json, sys\nfrom pathlib import Path\nfrom revvideo.distributed.env import current_process\n"
        "process = current_process()\nPath(sys.argv[1], str(process.rank)).write_text(json.dumps(vars(process)))\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    repository = Path(__file__).resolve().parents[1]
    subprocess.run([*torchrun, str(script), str(tmp_path)], cwd=repository, check=True, timeout=120)
    for rank in range(2):
        process = Process(**json.loads((tmp_path / str(rank)).read_text()))
        assert process == Process(rank, 2, rank, 2, 0, 1, process.master_addr, process.master_port, source="torchrun")
        assert process.master_port
