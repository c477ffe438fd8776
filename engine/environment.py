"""The environment of the process: variables that libraries read while torch is imported, CPUs and memory.

Torch-free.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_VARIABLES = {
    # Divide the rows of the weights among the threads. By default MKL divides the tokens; if there are few of
    # them, every thread reads all weights.
    "MKL_NUM_STRIPES": "2",
}
# Threads sleep at barriers, GNU's after about 20 us of spinning. By default they spin for long, and two
# processes that share cores are up to a hundred times slower. See docs/performance.md, "Threads at barriers".
_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def set_up_environment() -> None:
    """Set the variables that are not set yet. Call this before torch is imported."""
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else _WAITING
    for name, value in (_VARIABLES | waiting).items():
        os.environ.setdefault(name, value)


def available_cpus() -> int:
    """CPUs that the process may use: its affinity or the quota of its cgroups, rounded up; at least 1."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([affine, *_quotas()])))


def memory_limits() -> Iterator[int]:
    """Bytes that each cgroup of the process, and each group above it, may use; none without a limit."""
    for group, is_v1 in _groups("memory"):
        with contextlib.suppress(OSError, ValueError):  # no such group, "max"
            yield int((group / ("memory.limit_in_bytes" if is_v1 else "memory.max")).read_text())


def _quotas() -> Iterator[float]:
    """CPUs of each cgroup of the process and of the groups above it; infinite without a quota."""
    for group, is_v1 in _groups("cpu"):
        yield _quota(group, ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_v1 else ("cpu.max",))


def _groups(controller: str) -> Iterator[tuple[Path, bool]]:
    """The cgroups of the process with this controller and those above them; and whether each is of version
    1."""
    try:
        memberships = MEMBERSHIP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        is_v1 = bool(controllers)
        if is_v1 and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if is_v1 else CGROUPS
        for group in (Path(path), *Path(path).parents):
            yield root / group.relative_to("/"), is_v1


def _quota(group: Path, names: tuple[str, ...]) -> float:
    try:
        quota, period = " ".join((group / name).read_text() for name in names).split()
        cpus = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group, "max"
        return math.inf
    return cpus if cpus > 0 else math.inf  # -1: none
