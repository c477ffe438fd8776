"""How many CPUs and how much memory the process may use: its affinity and its cgroups."""

import os
from pathlib import Path

import pytest

from engine.environment import available_cpus, memory_limits

V2 = "0::{path}\n"
V1 = "4:memory:/other\n3:cpu,cpuacct:{path}\n1:name=systemd:/x\n0::/unused\n"


def limit(cgroups: Path, path: str, quota: str) -> None:
    """cgroup v2: `cpu.max` of the group."""
    folder = cgroups / path.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(quota)


def limit_v1(cgroups: Path, path: str, quota: int, period: int = 100_000) -> None:
    folder = cgroups / "cpu" / path.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mount of the cgroup file system, on a machine with 64 CPUs."""
    monkeypatch.setattr("engine.environment.CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr("engine.environment.MEMBERSHIP", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    join(tmp_path / "cgroup", V2, "/")
    return tmp_path / "cgroup"


def join(cgroups: Path, version: str, path: str) -> None:
    (cgroups.parent / "self").write_text(version.format(path=path))


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("50000 100000\n", 1),  # half a CPU
        ("150000 100000\n", 2),
        ("200000 100000\n", 2),
        ("1000 1000000\n", 1),
        ("9900000 100000\n", 64),  # more than there are
        ("max 100000\n", 64),
        ("max\n", 64),
        ("", 64),
        ("nonsense\n", 64),
        ("100000 0\n", 64),
    ],
)
def test_a_quota_of_version_2(cgroups: Path, quota: str, cpus: int) -> None:
    limit(cgroups, "/", quota)
    assert available_cpus() == cpus


def test_the_least_quota_of_all_groups_above_counts(cgroups: Path) -> None:
    join(cgroups, V2, "/kubepods/pod/container")
    limit(cgroups, "/kubepods", "3200000 100000")
    limit(cgroups, "/kubepods/pod", "300000 100000")
    limit(cgroups, "/kubepods/pod/container", "max 100000")
    assert available_cpus() == 3


def test_a_quota_of_version_1(cgroups: Path) -> None:
    join(cgroups, V1, "/docker/1234")
    limit_v1(cgroups, "/docker", -1)
    limit_v1(cgroups, "/docker/1234", 250_000)
    assert available_cpus() == 3


def test_a_container_that_sees_its_group_at_the_root(cgroups: Path) -> None:
    """Without a cgroup namespace the path is the host's, and only the group itself is mounted."""
    join(cgroups, V1, "/kubepods/pod/container")
    limit_v1(cgroups, "/", 100_000)
    assert available_cpus() == 1


def test_affinity_counts_too(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    limit(cgroups, "/", "800000 100000")
    assert available_cpus() == 2


def test_no_cgroups(cgroups: Path) -> None:
    (cgroups.parent / "self").unlink()
    assert available_cpus() == 64


def test_memory_limits_of_version_2(cgroups: Path) -> None:
    join(cgroups, V2, "/kubepods/pod/container")
    for path, limit in {
        "kubepods": "9000000000",
        "kubepods/pod": "4000000000",
        "kubepods/pod/container": "max",
    }.items():
        (cgroups / path).mkdir(parents=True, exist_ok=True)
        (cgroups / path / "memory.max").write_text(f"{limit}\n")
    assert sorted(memory_limits()) == [4_000_000_000, 9_000_000_000]


def test_a_memory_limit_of_version_1(cgroups: Path) -> None:
    join(cgroups, V1, "/docker/1234")
    (cgroups / "memory" / "other").mkdir(parents=True)
    (cgroups / "memory" / "other" / "memory.limit_in_bytes").write_text("5000000000\n")
    assert list(memory_limits()) == [5_000_000_000]
