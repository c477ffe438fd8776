"""How many CPUs and how much memory the process may use: its affinity and its cgroups."""

import os
from pathlib import Path

import pytest

from engine.environment import available_cpus, free_memory, host_memory

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
    """The mount of the cgroup file system, on a machine with 64 CPUs and 16 GB, of which 8.2 are free."""
    monkeypatch.setattr("engine.environment.CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr("engine.environment.MEMBERSHIP", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 16_000_000, "SC_PAGE_SIZE": 1000}.__getitem__)
    monkeypatch.setattr("engine.environment.MEMORY", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n")
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


def limit_memory(cgroups: Path, path: str, **files: object) -> None:
    """Write the files memory.NAME of a group."""
    folder = cgroups / path.strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


STAT = "anon 5\ninactive_file 700000000\nactive_file 200000000\ninactive_anon 9\n"
STAT_V1 = "inactive_file 4\ntotal_inactive_file 700000000\ntotal_active_file 200000000\n"


def test_the_memory_of_the_machine(cgroups: Path) -> None:
    assert (host_memory(), free_memory()) == (16_000_000_000, 8_192_000_000)


def test_memory_limits_of_version_2(cgroups: Path) -> None:
    join(cgroups, V2, "/kubepods/pod/container")
    limit_memory(cgroups, "kubepods", max=9_000_000_000, current=8_000_000_000, stat="")
    limit_memory(cgroups, "kubepods/pod", max=4_000_000_000, current=3_500_000_000, stat=STAT)
    limit_memory(cgroups, "kubepods/pod/container", max="max", current=3_500_000_000, stat=STAT)
    assert host_memory() == 4_000_000_000
    assert free_memory() == 1_000_000_000, "of the group above"
    limit_memory(cgroups, "kubepods", stat=STAT)
    assert free_memory() == 1_400_000_000, "cached files count as free"


def test_a_memory_limit_of_version_1(cgroups: Path) -> None:
    join(cgroups, V1, "/docker/1234")
    limit_memory(
        cgroups, "memory/other", limit_in_bytes=5_000_000_000, usage_in_bytes=3_000_000_000, stat=STAT_V1
    )
    limit_memory(cgroups, "memory", limit_in_bytes=9_223_372_036_854_771_712)
    assert (host_memory(), free_memory()) == (5_000_000_000, 2_900_000_000)


def test_a_group_that_uses_more_than_its_limit_has_nothing_free(cgroups: Path) -> None:
    limit_memory(cgroups, "/", max=1_000_000_000, current=1_100_000_000, stat="")
    assert free_memory() == 0
