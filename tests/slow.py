"""Finds slow tests by following the names that a test and its fixtures refer to."""

import inspect
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType

import pytest

# Packages that start a program or load the reference implementation.
SLOW = {"diffusers", "playwright", "schemathesis", "subprocess", "transformers"}
# Packages whose functions and classes are followed.
FOLLOWED = {"benchmarks", "models", "tests"}


def is_slow(test: pytest.Function) -> bool:
    """Whether the test or one of its fixtures reaches a package of SLOW."""
    fixtures = [fixture for found in test._fixtureinfo.name2fixturedefs.values() for fixture in found]
    return any(reaches(value) for value in (test.function, *(fixture.func for fixture in fixtures)))


@cache
def reaches(start: object) -> bool:
    """Whether a function refers to a package of SLOW, directly or through FOLLOWED."""
    seen: set[int] = set()
    waiting = [start]
    while waiting:
        value = waiting.pop()
        package = _package(value)
        if package in SLOW:
            return True
        if package in FOLLOWED and id(value) not in seen:
            seen.add(id(value))
            waiting += _references(value)
    return False


def _package(value: object) -> str:
    """Top-level package of a module or module name, or of the module that defines a value."""
    if isinstance(value, ModuleType):
        value = value.__name__
    name = value if isinstance(value, str) else getattr(value, "__module__", None)
    return str(name).partition(".")[0]


def _references(value: object) -> Iterator[object]:
    """Attributes of a class; globals, module attributes and local imports that a function names."""
    function = inspect.unwrap(getattr(value, "fget", None) or getattr(value, "__func__", value))
    if isinstance(function, type):
        yield from vars(function).values()
    if isinstance(function, FunctionType):
        names = set(_names(function.__code__))
        named = [function.__globals__.get(name, name) for name in names]
        yield from named
        for module in (each for each in named if isinstance(each, ModuleType)):
            yield from (vars(module)[name] for name in names & vars(module).keys())


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
