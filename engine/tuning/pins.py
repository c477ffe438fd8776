"""Pinned kernels: `--kernels NAME=CANDIDATE[,NAME=CANDIDATE...]`."""

from collections.abc import Sequence

from engine.errors import OptionError
from engine.tuning.cases import OPERATIONS, Case
from engine.tuning.store import Choices

Pin = tuple[str, str]


def check_operations(pins: Sequence[Pin]) -> None:
    """Raises OptionError unless every pin names an operation and one of its candidates. Needs no model."""
    for name, candidate in pins:
        operation = name.partition(".")[0]
        if operation not in OPERATIONS:
            raise OptionError(f"kernels: {name} is not one of {', '.join(OPERATIONS)}")
        known = [each.name for each in OPERATIONS[operation]]
        if candidate not in known:
            raise OptionError(f"kernels: {name}={candidate}: the candidates are {', '.join(known)}")


def pinned(cases: Sequence[Case], pins: Sequence[Pin]) -> Choices:
    """The candidate of each pinned case, by its key. Of several pins of a case, the longest name counts.

    Raises OptionError if a pin fits no case, or if a case has no such candidate on this machine.
    """
    for name, _ in pins:
        if not any(_fits(name, case.key) for case in cases):
            listed = ", ".join(case.key for case in cases)
            raise OptionError(f"kernels: {name} fits no operation of this model; there are {listed}")
    choices: Choices = {}
    for name, candidate in sorted(pins, key=lambda pin: len(pin[0])):
        for case in (each for each in cases if _fits(name, each.key)):
            if candidate in case.names:
                choices[case.key] = candidate
            elif name == case.key:
                raise _unavailable(name, candidate, case.names)
        if candidate not in {each for case in cases if _fits(name, case.key) for each in case.names}:
            raise _unavailable(name, candidate, [n for c in cases if _fits(name, c.key) for n in c.names])
    return choices


def _unavailable(name: str, candidate: str, names: Sequence[str]) -> OptionError:
    there = ", ".join(dict.fromkeys(names))
    return OptionError(
        f"kernels: {name}={candidate} is not available for this machine and dtype: {there} are"
    )


def _fits(name: str, key: str) -> bool:
    """Whether it is the key, or its first parts."""
    return key == name or key.startswith(f"{name}.")
