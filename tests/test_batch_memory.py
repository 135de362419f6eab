"""How much memory there is to plan with: what the system has free, or what the control groups leave."""

import pytest

from revvideo.build.memory_budget import CPU_SHARE, available_cpu_bytes, usable_bytes

GIB = 2**30


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(root, groups: str = "", available_gib: int = 16):
    write(root / "proc/meminfo", f"MemTotal: 99999999 kB\nMemAvailable: {available_gib * 2**20} kB\n")
    write(root / "proc/self/cgroup", groups)


def group(folder, version: int, limit: object, used: int, cached: int):
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}
    limit_name, use_name, cached_name = names.get(version, ("memory.max", "memory.current", "inactive_file"))
    write(folder / limit_name, f"{limit}\n")
    write(folder / use_name, f"{used}\n")
    write(folder / "memory.stat", f"cache 1\n{cached_name} {cached}\n")


def test_without_limits_it_is_what_is_available(tmp_path):
    machine(tmp_path, "0::/\n")
    assert available_cpu_bytes(tmp_path) == 16 * GIB
    assert available_cpu_bytes(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("visible", [True, False])
def test_the_tightest_control_group_counts(tmp_path, version, visible):
    top = tmp_path / "sys/fs/cgroup" / {1: "memory", 2: ""}[version]
    machine(tmp_path, {1: "4:cpu,memory:/slurm/job_7/step_0\n2:cpuset:/\n", 2: "0::/slurm/job_7/step_0\n"}[version])
    job = top / "slurm/job_7" if visible else top  # a container shows its own group as the top
    group(job, version, 4 * GIB, used=3 * GIB, cached=GIB)
    if visible:
        group(job / "step_0", version, "max" if version == 2 else 2**63 - 4096, used=GIB, cached=0)
    assert available_cpu_bytes(tmp_path) == 2 * GIB
    group(job, version, 4 * GIB, used=5 * GIB, cached=0)
    assert available_cpu_bytes(tmp_path) == 0


def test_processes_share_what_is_left_and_own_tensors_are_part_of_the_plan(monkeypatch):
    import torch

    monkeypatch.setattr("revvideo.build.memory_budget.available_cpu_bytes", lambda: 8 * GIB)
    one, four = (usable_bytes(torch.device("cpu"), GIB, processes=count) for count in (1, 4))
    assert (one - GIB, four - GIB) == (int(CPU_SHARE * 8 * GIB), int(CPU_SHARE * 2 * GIB))


def test_this_machine_says_something_plausible():
    available = available_cpu_bytes()
    if available is None:
        pytest.skip("no /proc/meminfo")
    assert 2**20 < available < 2**50
