"""A container's CPU limit counts, as both versions of Linux' control groups tell it, and as the kernel here does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fletcher_core.engines import cores


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of eight cores, whose control groups are files in the folder."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("control groups are Linux'")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(cores, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    return tmp_path


def lay(folder: Path, own: str, **files: str) -> None:
    (folder / "own").write_text(own)
    for name, text in files.items():
        path = folder / "groups" / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_without_a_limit_all_cores_count(eight_cores: Path) -> None:
    assert cores.available_cores() == 8  # no control groups at all
    lay(eight_cores, "0::/\n", cpu_max="max 100000\n")
    assert cores.available_cores() == 8
    lay(eight_cores, "1:cpu,cpuacct:/\n0::/\n", cpu__cpu_cfs_quota_us="-1\n", cpu__cpu_cfs_period_us="100000\n")
    assert cores.available_cores() == 8


@pytest.mark.parametrize(("quota", "threads"), [(10_000, 1), (100_000, 1), (150_000, 2), (400_000, 4), (1_600_000, 8)])
def test_a_limit_in_cores_is_rounded_up(eight_cores: Path, quota: int, threads: int) -> None:
    lay(eight_cores, "0::/\n", cpu_max=f"{quota} 100000\n")
    assert cores.available_cores() == threads
    lay(
        eight_cores,
        "7:memory:/\n3:cpuset:/elsewhere\n1:cpu,cpuacct:/\n",
        cpu__cpu_cfs_quota_us=f"{quota}\n",
        cpu__cpu_cfs_period_us="100000\n",
    )
    assert cores.available_cores() == threads


def test_the_strictest_of_the_groups_above_counts(eight_cores: Path) -> None:
    lay(eight_cores, "0::/pods/one\n", pods__cpu_max="300000 100000", pods__one__cpu_max="max 100000")
    assert cores.available_cores() == 3


def test_a_path_of_the_host_that_is_not_to_be_seen_in_the_container_is_passed_over(eight_cores: Path) -> None:
    lay(eight_cores, "0::/kubepods.slice/pod7/one\n", cpu_max="200000 100000")
    assert cores.available_cores() == 2


def test_the_kernels_own_limit_is_found() -> None:
    group = Path("/sys/fs/cgroup/cpu") if Path("/sys/fs/cgroup/cpu/cgroup.procs").exists() else Path("/sys/fs/cgroup")
    own = group / f"fletcher-cores-{os.getpid()}"
    try:
        own.mkdir()
        if (group / "cpu.cfs_quota_us").exists():
            (own / "cpu.cfs_quota_us").write_text("100000")
        else:
            (own / "cpu.max").write_text("100000 100000")
    except OSError as error:
        own.rmdir() if own.exists() else None
        pytest.skip(f"no control group can be made here: {error}")
    script = (
        f"import os; open({str(own / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); "
        "from fletcher_core.engines.cores import available_cores; print(available_cores())"
    )
    try:
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    finally:
        own.rmdir()
    assert run.stdout == "1\n"
