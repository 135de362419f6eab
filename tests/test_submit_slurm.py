"""Submitting to a real Slurm: what it takes and refuses, jobs on several nodes, arrays, chains, dependencies."""

import functools

import pytest
from launched import HERE, Reporting, everything, reports, submit_run, sweep, wait_until

from revvideo.errors import InputError
from revvideo.launch import submit as submit_module
from revvideo.launch.resources import Resources
from revvideo.launch.submission import latest_submission
from revvideo.launch.submit import submit

FOUR_TASKS = Resources(nodes=2, tasks_per_node=2, mem_gib=0.25, minutes=5, partition="train")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))


@pytest.fixture
def on_slurm(slurm, monkeypatch):
    """This process submits to the test cluster."""
    for name, value in slurm.variables().items():
        monkeypatch.setenv(name, value)
    return slurm


def test_slurm_takes_the_script_of_a_dry_run(tmp_path, on_slurm, capsys):
    jobs = on_slurm.jobs()
    run = tmp_path / "a b"
    submit(sweep(run), FOUR_TASKS, run_folder=run, cluster="slurm", make_job=Reporting, chain=2, dry_run=True)
    assert not run.exists()
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    on_slurm.run("sbatch", "--test-only", script)
    assert "#SBATCH --array=0-2%3" in script.read_text()
    assert str(run / "launch/001/jobs") in script.read_text()
    assert on_slurm.jobs() == jobs


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"partition": "nosuch"}, r"Invalid partition.*--partition=nosuch"),
        ({"gpus_per_node": 3}, r"node configuration is not available.*--gpus-per-node=3"),
        ({"nodes": 9}, r"node configuration is not available.*--nodes=9"),
        ({"constraint": "h100"}, r"Invalid feature.*--constraint=h100"),
    ],
)
def test_slurm_refuses_before_anything_is_submitted(tmp_path, on_slurm, wrong, message):
    jobs = on_slurm.jobs()
    resources = Resources(**{"mem_gib": 0.25, "minutes": 5} | wrong)
    for dry_run in (True, False):
        with pytest.raises(InputError, match=f"Slurm refuses the job: .*{message}.*nothing was submitted") as error:
            submit_run(tmp_path / "run", resources, "slurm", dry_run=dry_run)
        assert "\n" not in str(error.value)
    assert everything(tmp_path) == []
    assert on_slurm.jobs() == jobs


def test_slurm_would_not_wait_for_a_job_that_it_does_not_know(tmp_path, on_slurm):
    with pytest.raises(InputError, match="--after 999999: Slurm does not know this job"):
        submit_run(tmp_path / "run", FOUR_TASKS, "slurm", after="999999")
    assert everything(tmp_path) == []


@pytest.mark.slurm
def test_a_job_on_two_nodes_submitted_from_inside_another(tmp_path, on_slurm, monkeypatch):
    outer = {
        **{"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1", "SLURM_MEM_PER_CPU": "10"},
        **{"RANK": "1", "WORLD_SIZE": "3", "MASTER_ADDR": "gone", "TORCHELASTIC_RUN_ID": "1"},
        **{"SUBMITIT_EXECUTOR": "local", "CUDA_VISIBLE_DEVICES": "7", "SLURM_GPUS_PER_NODE": "5"},
    }
    for name, value in outer.items():
        monkeypatch.setenv(name, value)
    made = submit_run(tmp_path / "a b", FOUR_TASKS, "slurm")
    with pytest.raises(InputError, match=f"its job lives: {made.jobs[0]}"):
        submit_run(tmp_path / "a b", FOUR_TASKS, "slurm")
    on_slurm.wait_for(made.jobs[0], "COMPLETED")
    found = reports(made.folder)
    assert sorted((each["rank"], each["world_size"], each["machine"]) for each in found.values()) == [
        *((0, 4, 0), (1, 4, 0), (2, 4, 1), (3, 4, 1)),
    ]
    assert {each["code"] for each in found.values()} == {str(made.code_folder / "revvideo/__init__.py")}
    meetings = {tuple(each["master"]) for each in found.values()}
    assert [address for address, _ in meetings] == ["127.0.0.1"]
    assert all(each["blocks_usr2"] for each in found.values())
    for name in ("RANK", "CUDA_VISIBLE_DEVICES", "SLURM_MEM_PER_CPU", "TORCHELASTIC_RUN_ID"):
        assert not any(name in each["environ"] for each in found.values())
    logs = {f"{made.jobs[0]}_{rank}_log.out" for rank in range(4)}
    assert {path.name for path in made.jobs_folder.glob("*_log.*")} == logs


@pytest.mark.slurm
def test_a_chain_of_sweeps(tmp_path, on_slurm):
    one = Resources(mem_gib=0.25, minutes=5)
    made = submit(sweep(tmp_path), one, run_folder=tmp_path, cluster="slurm", make_job=Reporting, chain=2)
    assert latest_submission(tmp_path).jobs == made.jobs
    first, second = made.jobs
    assert made.job_ids(2) == (f"{first}_2", f"{second}_2")
    for member in range(3):
        wait_until(lambda member=member: f"{second}_{member}" in on_slurm.jobs())  # waiting ones share one entry
        on_slurm.wait_for(f"{second}_{member}", "COMPLETED")
    jobs = on_slurm.jobs()
    ends = [jobs[f"{first}_{member}"]["EndTime"] for member in range(3)]
    assert max(ends) <= min(jobs[f"{second}_{member}"]["StartTime"] for member in range(3))
    wait_until(lambda: set(reports(made.folder)) == {"0.0", "1.0", "2.0"})
    assert [made.log_file(job, 0).is_file() for member in range(3) for job in made.job_ids(member)] == [True] * 6


@pytest.mark.slurm
def test_after_a_failure_nothing_runs(tmp_path, on_slurm):
    """Neither the job that needs it nor, in a chain, those that come after any end of that."""
    failing = on_slurm.sbatch("--mem", 100, "--wrap", "sleep 2; exit 1", cwd=tmp_path)
    one = Resources(mem_gib=0.25, minutes=5)
    made = submit_run(tmp_path / "run", one, "slurm", after=failing, chain=2)
    for job in made.jobs:
        assert on_slurm.wait_for(job, "CANCELLED")["NodeList"] in ("", "(null)")
    assert reports(made.folder) == {}


@pytest.mark.slurm
def test_a_chain_is_submitted_whole_or_not_at_all(tmp_path, on_slurm, monkeypatch):
    make_executor = submit_module.make_executor

    def refused_as_second(submission, dependency="", **more):
        executor = make_executor(submission, dependency, **more)
        if dependency:
            executor.update_parameters(partition="nosuch")
        return executor

    monkeypatch.setattr(submit_module, "make_executor", refused_as_second)
    waiting = functools.partial(Reporting, waits=True)
    with pytest.raises(InputError, match="the jobs before it were cancelled"):
        submit_run(tmp_path / "run", Resources(mem_gib=0.25, minutes=5), "slurm", chain=2, make_job=waiting)
    (job,) = latest_submission(tmp_path / "run").jobs
    assert on_slurm.wait_for(job, "CANCELLED")
