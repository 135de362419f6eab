"""`revvideo run_net`: which processes a config starts, what a launcher overrules, what each process prints."""

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from revvideo.config import ConfigError, load_config
from revvideo.config.arguments import add_config_arguments, config_from_arguments
from revvideo.distributed.env import Process
from revvideo.distributed.rank_logging import line_prefix, set_up_logging
from revvideo.errors import CheckFailed, InputError, RankFailed, Stopped, WorkerFailed
from revvideo.exit_codes import run_guarded
from revvideo.jobs import processes

TORCHRUN = {
    **{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x"},
}
SRUN_OF_ONE = {
    **{"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"},
    **{"SLURM_NNODES": "1", "SLURM_NODEID": "0"},
}


@pytest.fixture
def outcome(monkeypatch):
    """A function: launches a config on a machine with 8 GPUs; what it started: "here", or a list of processes."""
    started = []
    monkeypatch.setattr(processes, "_count_gpus", lambda: 8)
    monkeypatch.setattr(processes, "_run_jobs", lambda cfg: started.append("here") or 0)
    monkeypatch.setattr(processes, "spawn", lambda work, args, places: started.append(places) or 75)

    def launch(overrides: dict, environ: dict | None = None):
        for name, value in (environ or {}).items():
            monkeypatch.setenv(name, value)
        started.clear()
        code = processes.launch(load_config("demo/REV_MVIT_DEMO", overrides))
        (found,) = started
        assert code == (0 if found == "here" else 75)
        return found

    return launch


@pytest.mark.parametrize(
    "overrides",
    [
        {"NUM_GPUS": 0},
        {"NUM_GPUS": 1},
        {"NUM_GPUS": 0, "DIST.NUM_PROCESSES": 1},
        {"NUM_GPUS": 1, "DIST.NUM_PROCESSES": 2},
    ],
)
def test_a_config_of_one_process_runs_in_this_one(outcome, overrides):
    assert outcome(overrides) == "here"


@pytest.mark.parametrize(("overrides", "count"), [({"NUM_GPUS": 8}, 8), ({"NUM_GPUS": 0, "DIST.NUM_PROCESSES": 4}, 4)])
def test_a_config_of_several_processes_starts_them(outcome, overrides, count):
    places = outcome(overrides)
    assert [place.rank for place in places] == list(range(count))
    assert {(place.world_size, place.local_world_size, place.num_machines) for place in places} == {(count, count, 1)}
    assert {place.master_addr for place in places} == {"127.0.0.1"}


@pytest.mark.parametrize(("overrides", "count"), [({"NUM_GPUS": 4}, 4), ({"NUM_GPUS": 0}, 1)])
def test_pyslowfasts_way_of_several_machines(outcome, overrides, count):
    machines = {"NUM_SHARDS": 3, "SHARD_ID": 2, "DIST.INIT_METHOD": "tcp://gpu01:29500"}
    places = outcome(overrides | machines)
    assert [place.rank for place in places] == [2 * count + local for local in range(count)]
    assert {(place.world_size, place.machine, place.master_addr) for place in places} == {(3 * count, 2, "gpu01")}


def test_the_command_line_of_pyslowfast():
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    words = [
        "--cfg",
        "demo/REV_MVIT_DEMO",
        "--num_shards",
        "2",
        "--shard_id",
        "1",
        "--init_method",
        "tcp://gpu01:29500",
    ]
    cfg = config_from_arguments(parser.parse_args(words))
    assert (cfg.NUM_SHARDS, cfg.SHARD_ID, cfg.DIST.INIT_METHOD) == (2, 1, "tcp://gpu01:29500")
    assert config_from_arguments(parser.parse_args(words[:2])).DIST.INIT_METHOD == ""


@pytest.mark.parametrize("overrides", [{"NUM_GPUS": 8}, {"NUM_GPUS": 0}, {"NUM_SHARDS": 4, "NUM_GPUS": 2}])
def test_under_a_launcher_nothing_is_started(outcome, overrides):
    assert outcome(overrides, TORCHRUN) == "here"


def test_rank_0_tells_what_the_launcher_overrules(outcome, caplog):
    outcome({"NUM_GPUS": 8}, TORCHRUN)
    assert not [record for record in caplog.records if "torchrun" in record.message]
    outcome({"NUM_GPUS": 1}, TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"})
    assert not [record for record in caplog.records if "torchrun" in record.message]
    outcome({"NUM_GPUS": 8}, TORCHRUN | {"RANK": "0", "LOCAL_RANK": "0"})
    (warning,) = (record.message for record in caplog.records if "torchrun" in record.message)
    assert "NUM_GPUS is 8, but torchrun has started 2" in warning


def test_an_interactive_step_of_srun_is_as_good_as_a_plain_process(outcome):
    assert len(outcome({"NUM_GPUS": 8}, SRUN_OF_ONE)) == 8


def test_two_ways_of_starting_at_once_are_refused(outcome):
    machines = {"NUM_SHARDS": 2, "DIST.INIT_METHOD": "tcp://gpu01:29500"}
    with pytest.raises(ConfigError, match=r"torchrun has started 2 processes already.*--init_method"):
        outcome(machines, TORCHRUN)


def test_a_wrong_environment_starts_nothing(outcome):
    with pytest.raises(InputError, match="MASTER_ADDR not set"):
        outcome({"NUM_GPUS": 0}, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})


def test_more_gpus_than_there_are(outcome):
    with pytest.raises(ConfigError, match=r"NUM_GPUS is 16, but torch finds 8 CUDA devices.*NUM_SHARDS 1 NUM_GPUS 8"):
        outcome({"NUM_GPUS": 16})


def test_several_machines_without_a_meeting_point(outcome):
    with pytest.raises(ConfigError, match=r"NUM_SHARDS is 2.*add: NUM_SHARDS 1 NUM_GPUS 1 SHARD_ID 0 .*--init_method"):
        outcome({"NUM_SHARDS": 2, "SHARD_ID": 1, "NUM_GPUS": 1})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"DIST.NUM_PROCESSES": 3}, "TRAIN.BATCH_SIZE is 8.*DIST.NUM_PROCESSES 3"),
        ({"DIST.NUM_PROCESSES": 2, "RUN.ACCUMULATION_STEPS": 3}, "RUN.ACCUMULATION_STEPS is 3.*4 clips of a process"),
    ],
)
def test_a_batch_that_the_processes_cannot_share_starts_none(outcome, overrides, said):
    with pytest.raises(ConfigError, match=said):
        outcome({"NUM_GPUS": 0} | overrides)
    assert len(outcome({"NUM_GPUS": 0, "TRAIN.ENABLE": False} | overrides)) == overrides["DIST.NUM_PROCESSES"]


def test_accumulation_steps_do_not_matter_where_they_are_searched(outcome):
    keys = {"NUM_GPUS": 0, "DIST.NUM_PROCESSES": 2, "RUN.ACCUMULATION_STEPS": 3, "RUN.AUTO_BATCH_SIZE": True}
    assert len(outcome(keys)) == 2


# What processes print


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (InputError("no such key"), 2, "revvideo: error: no such key\n"),
        (CheckFailed("too many"), 3, "revvideo: check failed: too many\n"),
        (WorkerFailed("worker 1 died"), 1, "revvideo: error: worker 1 died\n"),
        (RankFailed("rank 1 (a, 7): ValueError: x"), 1, "revvideo: error: rank 1 (a, 7): ValueError: x\n"),
        (
            Stopped("stopped by SIGTERM after step 7", reason="SIGTERM"),
            75,
            "revvideo: stopped by SIGTERM after step 7\n",
        ),
        (KeyboardInterrupt(), 130, "revvideo: interrupted\n"),
    ],
)
def test_an_error_becomes_a_line_with_the_rank_and_an_exit_code(capsys, error, exit_code, said):
    def work():
        raise error

    assert run_guarded(work) == exit_code
    assert capsys.readouterr().err == said
    assert run_guarded(work, prefix="[rank 3] ") == exit_code
    assert capsys.readouterr().err == f"[rank 3] {said}"


def test_every_line_of_a_traceback_names_the_rank(capsys):
    assert run_guarded(lambda: 1 // 0, prefix="[rank 3] ") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 3
    assert all(line.startswith("[rank 3] ") for line in lines)
    assert lines[0] == "[rank 3] Traceback (most recent call last):"


def test_work_without_an_error(capsys):
    assert (run_guarded(lambda: None), run_guarded(lambda: 75)) == (0, 75)
    assert capsys.readouterr().err == ""


@contextmanager
def no_handlers() -> Iterator[None]:
    """As in a process of its own: pytest's handlers keep away what sets up logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize(
    ("process", "lines"),
    [
        (Process(), ["INFO once", "WARNING one", "two"]),
        (Process(0, 2, local_world_size=2), ["INFO [rank 0] once", "WARNING [rank 0] one", "[rank 0] two"]),
        (Process(1, 2, 1, 2), ["WARNING [rank 1] one", "[rank 1] two"]),
    ],
)
def test_logging_names_the_rank_and_only_rank_0_tells_what_goes_well(capsys, process, lines):
    with no_handlers():
        set_up_logging(process)
        logging.info("once")
        logging.warning("one\ntwo")
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[2] if line[2] == ":" else line for line in said] == lines
    assert line_prefix(process) == (f"[rank {process.rank}] " if process.world_size > 1 else "")


def test_every_rank_says_what_is_missing_in_its_environment():
    """WORLD_SIZE 2 without MASTER_ADDR, by the command: one error each and exit code 2, before torch is imported."""
    code = "import sys; sys.modules['torch'] = None; from revvideo.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "run_net", "--cfg", "demo/REV_MVIT_DEMO"]
    for rank in range(2):
        environ = os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        (error,) = (line for line in done.stderr.splitlines() if "error: " in line)
        assert f"RANK='{rank}'" in error
        assert "MASTER_ADDR not set" in error
        assert "Traceback" not in done.stderr
