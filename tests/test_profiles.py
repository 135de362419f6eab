"""Cluster profiles: what they set, what options do over them, what is refused."""

import pytest
import tiny
from submitting import catch_submissions, submit_words

from revvideo.config import default_config
from revvideo.errors import InputError
from revvideo.launch.arguments import resources_of
from revvideo.launch.profiles import KEYS, list_profiles, load_profile

WHOLE = """
nodes: 2
gpus_per_node: 4
cpus_per_task: 9
mem_gib: 480
minutes: 72:00:00
partition: gpu
account: vision
signal_seconds: 300
interface: ib0
setup:
  - module load cuda
  - ulimit -n 4096
env:
  NCCL_DEBUG: INFO
  A: 012
"""


def written(tmp_path, text: str) -> str:
    file = tmp_path / "profile.yaml"
    file.write_text(text)
    return str(file)


def test_a_profile_sets_what_options_set(tmp_path):
    profile = load_profile(written(tmp_path, WHOLE))
    assert profile["minutes"] == 4320  # YAML 1.1 alone would read 259200
    assert profile["mem_gib"] == 480
    assert profile["env"] == {"NCCL_DEBUG": "INFO", "A": "012"}
    assert profile["setup"] == ("module load cuda", "ulimit -n 4096")
    resources = resources_of({}, profile, default_config(), "slurm")
    assert (resources.nodes, resources.tasks_per_node, resources.partition) == (2, 4, "gpu")


def test_options_win_over_the_profile_and_the_profile_over_the_config(monkeypatch, tmp_path):
    caught = catch_submissions(monkeypatch)
    text = "nodes: 2\ntasks_per_node: 2\nminutes: 30\nsetup: one\nenv: {A: 1, B: 2}\n"
    options = ["--nodes", 3, "--setup", "two", "--env", "B=3"]
    words = ["--profile", written(tmp_path, text), *options, "DIST.NUM_PROCESSES", 4, "NUM_SHARDS", 7]
    tiny.done(submit_words(tmp_path / "run", *words))
    resources = caught.resources
    assert (resources.nodes, resources.tasks_per_node, resources.minutes) == (3, 2, 30)
    assert resources.setup == ("one", "two")
    assert {name: resources.env[name] for name in "AB"} == {"A": "1", "B": "3"}


def test_another_number_of_gpus_brings_its_own_number_of_tasks():
    cfg = default_config()
    profile = {"gpus_per_node": 8, "tasks_per_node": 8}
    assert resources_of({"gpus_per_node": 2}, profile, cfg, "slurm").tasks_per_node == 2
    with pytest.raises(InputError, match="a task a GPU"):
        resources_of({}, {"gpus_per_node": 8, "tasks_per_node": 4}, cfg, "slurm")


@pytest.mark.parametrize("name", list_profiles())
def test_every_shipped_profile_can_be_used(name):
    profile = load_profile(name)
    assert set(profile) <= set(KEYS)
    resources = resources_of({}, profile, default_config(), "slurm")
    assert resources.gpus_per_node in (0, resources.tasks_per_node)
    assert load_profile(f"configs/launch/{name}.yaml") == profile


def test_memory_without_a_unit_is_what_the_key_says(tmp_path):
    assert load_profile(written(tmp_path, "mem_gib: 64"))["mem_gib"] == 64
    assert load_profile(written(tmp_path, "mem_gib: 512M"))["mem_gib"] == 0.5


def test_an_empty_profile_sets_nothing(tmp_path):
    assert load_profile(written(tmp_path, "# all by options\n")) == {}


WRONG = {
    "partiton: gpu": "unknown key partiton; did you mean partition?",
    "time: 10": "unknown key time; did you mean minutes?",
    "mem: 10": "unknown key mem; did you mean mem_gib?",
    "gpus-per-node: 8": "unknown key gpus-per-node; did you mean gpus_per_node?",
    "xyzzy: 1": "unknown key xyzzy; the keys are nodes, gpus_per_node",
    "nodes: two": "nodes is 'two'; expected a whole number",
    "nodes: [1, 2]": r"nodes is \['1', '2'\]; expected one value",
    "nodes:": "nodes is ''; expected a whole number",
    "nodes: 1\nnodes: 2": "line 2: nodes stands twice",
    "minutes: 0": "minutes is '0'; expected a time limit",
    "setup: {a: b}": "setup is .*; expected a shell line or a list",
    "env: [A=1]": "env is .*; expected NAME: value lines",
    "env: {SLURM_JOB_ID: 1}": "env sets SLURM_JOB_ID",
    "env: {1A: 1}": "env has the variable '1A'",
    "- nodes": "expected KEY: value lines",
    "nodes: {": "is not YAML",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_profiles_are_refused_with_the_file_and_the_key(tmp_path, text):
    file = written(tmp_path, text)
    with pytest.raises(InputError, match=WRONG[text]) as error:
        load_profile(file)
    assert file in str(error.value)


@pytest.mark.parametrize("name", ["gpu9", "nowhere.yaml", ""])
def test_an_unknown_profile_names_the_known_ones(name):
    with pytest.raises(InputError, match=r"--profile is .*cpu, gpu1, gpu8"):
        load_profile(name)
