"""The adapters in memory: loading, bound, order of leaving, faults."""

import hashlib
import select
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from engine.adapters import store as store_module
from engine.adapters.store import AdapterStore
from engine.errors import AdapterFailedError, AdaptersTooLargeError, AdapterUnavailableError
from engine.request import AdapterUse
from tests.engine.adapters.files import peft, write
from tests.engine.adapters.test_adapter_file import CONFIG

CPU = torch.device("cpu")
# Bytes in float32 of an adapter of rank 1.
UNIT = sum(tensor.nbytes for tensor in peft(CONFIG, rank=1).values())


def store(units: float) -> AdapterStore:
    """A store for so many adapters of rank 1."""
    configs = {"conditional": CONFIG, "unconditional": CONFIG}
    devices = {"conditional": CPU, "unconditional": CPU}
    return AdapterStore(configs, devices, torch.float32, int(units * UNIT))  # type: ignore[arg-type]


def use(folder: Path, name: str, rank: int = 1) -> AdapterUse:
    file = write(folder / f"{name}.safetensors", peft(CONFIG, rank, seed=len(name)))
    return AdapterUse(name, str(file), hashlib.sha256(file.read_bytes()).hexdigest(), 1.0)


def load(held: AdapterStore, *wanted: AdapterUse, in_use: tuple[AdapterUse, ...] = ()) -> None:
    """Update until all are in memory or have failed."""
    digests = {each.digest for each in in_use}
    held.update(wanted, digests)
    while not all(held.is_resident(each.digest) or held.error([each]) for each in wanted):
        assert select.select([held], [], [], 30)[0], "nothing was loaded"
        held.update(wanted, digests)


def residents(held: AdapterStore, *uses: AdapterUse) -> list[str]:
    return [each.name for each in uses if held.is_resident(each.digest)]


def test_the_least_recently_used_adapter_leaves(tmp_path: Path) -> None:
    held, uses = store(2), [use(tmp_path, name) for name in ("a", "bb", "ccc")]
    load(held, *uses[:2])
    assert held[uses[0].digest].nbytes == UNIT  # used again
    load(held, uses[2])
    assert residents(held, *uses) == ["a", "ccc"]


def test_an_adapter_in_use_stays_and_others_wait_for_memory(tmp_path: Path) -> None:
    held, (first, second) = store(1), [use(tmp_path, name) for name in ("a", "bb")]
    load(held, first)
    held.update([second], {first.digest})
    while not held.waits_for_memory([second]):
        assert select.select([held], [], [], 30)[0]
        held.update([second], {first.digest})
    assert residents(held, first, second) == ["a"]
    held.update([second], ())
    assert residents(held, first, second) == ["bb"]


@pytest.mark.parametrize(("names", "bound"), [(("a", "bb"), ""), (("a", "bb", "ccc"), "at least ")])
def test_adapters_that_do_not_fit_together_are_refused(
    tmp_path: Path, names: tuple[str, ...], bound: str
) -> None:
    """Also before all are loaded."""
    held, uses = store(1.5), [use(tmp_path, name) for name in names]
    held.update(uses[:2], ())
    while (error := held.error(uses)) is None:
        assert select.select([held], [], [], 30)[0]
        held.update(uses[:2], ())
    assert isinstance(error, AdaptersTooLargeError)
    limit = f"at most {held.max_bytes} (--adapter-memory-gb)"
    listed = ", ".join(f"`{name}`" for name in names)
    assert str(error) == f"The adapters {listed} take {bound}{2 * UNIT} bytes of memory; {limit}"


def test_a_replaced_file_is_another_adapter(tmp_path: Path) -> None:
    held, old = store(4), use(tmp_path, "a")
    new = use(tmp_path, "a", rank=2)
    load(held, old, new)
    assert residents(held, old, new) == ["a"]
    error = held.error([new, old])
    assert isinstance(error, AdapterUnavailableError)
    assert str(error) == "The file of the adapter `a` was replaced or removed after the request was accepted"
    assert held.error([new]) is None


def test_a_fault_of_a_file_is_forgotten_with_its_requests(tmp_path: Path) -> None:
    held, broken = store(4), use(tmp_path, "a")
    content = Path(broken.path).read_bytes()
    Path(broken.path).unlink()
    load(held, broken)
    assert isinstance(held.error([broken]), AdapterUnavailableError)
    held.update([], ())
    Path(broken.path).write_bytes(content)
    load(held, broken)
    assert residents(held, broken) == ["a"]


def test_an_adapter_with_nan_is_refused(tmp_path: Path) -> None:
    tensors = peft(CONFIG)
    key = "transformer.layers.1.feed_forward.w2.lora_B.weight"
    tensors[key][0, 0] = float("nan")
    file = write(tmp_path / "nan.safetensors", tensors)
    nan = AdapterUse("nan", str(file), hashlib.sha256(file.read_bytes()).hexdigest(), 1.0)
    held = store(10)
    load(held, nan)
    error = held.error([nan])
    assert isinstance(error, AdapterFailedError)
    assert str(error) == f"The adapter `nan` cannot be loaded: nan.safetensors: {key}: NaN or infinity"


@pytest.mark.parametrize(
    ("raised", "reason"), [(torch.OutOfMemoryError(), "out of memory"), (OSError("x"), "OSError")]
)
def test_a_failed_copy_to_the_device_is_forgotten_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, reason: str
) -> None:
    """With the rules of a device that adapters are copied to."""
    held, wanted = store(4), use(tmp_path, "a")
    monkeypatch.setattr(held, "_is_host", False)
    monkeypatch.setattr(store_module, "pinned", lambda adapter: adapter)
    monkeypatch.setattr(store_module, "sent", Mock(side_effect=raised))
    load(held, wanted)
    assert str(held.error([wanted])) == f"The adapter `a` cannot be loaded: {reason}"
    monkeypatch.setattr(store_module, "sent", lambda adapter, devices: adapter)
    held.update([], ())
    load(held, wanted)
    assert residents(held, wanted) == ["a"]


@pytest.mark.parametrize("wanted", [0, 5])
def test_reading_ahead_is_bounded(tmp_path: Path, wanted: int) -> None:
    held, uses = store(0), [use(tmp_path, "x" * length) for length in range(1, wanted + 1)]
    held.update(uses, ())
    assert len(held._reading) == min(2, wanted)
