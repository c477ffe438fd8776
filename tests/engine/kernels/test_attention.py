"""Each candidate of attention, compared with softmax attention in float64."""

import pytest
import torch
from torch import Tensor

from engine.kernels import attention
from engine.kernels.attention import CANDIDATES, CAUSAL_CANDIDATES, Attend, Length, length_class
from engine.kernels.candidates import Candidate, Machine
from engine.kernels.packing import Rows
from tests.engine.conftest import relative

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
EACH = [(length, each) for length, row in CANDIDATES.items() for each in row]


def reference(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """One sample: (Q, H, K)."""
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        scores += torch.full(scores.shape[1:], -torch.inf, device=scores.device, dtype=scores.dtype).triu(1)
    return (scores.softmax(-1) @ v).transpose(0, 1)


def require(candidate: Candidate, dtype: torch.dtype) -> None:
    if not candidate.is_correct(Machine(DEVICE, dtype)):
        pytest.skip("not on this machine")


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("head_dim", [32, 64, 256])
@pytest.mark.parametrize("keys", [[300, 300], [300, 200], [100, 20]])
@pytest.mark.parametrize("image_alone", [False, True])
@pytest.mark.parametrize(("length", "candidate"), EACH, ids=lambda value: getattr(value, "name", value))
def test_a_candidate(
    length: Length,
    candidate: Candidate,
    image_alone: bool,
    keys: list[int],
    head_dim: int,
    dtype: torch.dtype,
) -> None:
    require(candidate, dtype)
    torch.manual_seed(0)
    attend = Attend(3, 3, head_dim)
    attend.kernels = dict.fromkeys(CANDIDATES, candidate.run)
    queries = [n - 10 for n in keys] if image_alone else keys
    q, k, v = (torch.randn(sum(n), 3, head_dim, device=DEVICE).to(dtype) for n in (queries, keys, keys))
    attended = attend.packed(q, k, v, Rows.build(queries, DEVICE), Rows.build(keys, DEVICE))
    samples = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    assert relative(attended, torch.cat([reference(*sample) for sample in samples])) < BOUNDS[dtype]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("candidate", CAUSAL_CANDIDATES, ids=lambda each: each.name)
def test_a_causal_candidate_with_shared_keys(candidate: Candidate, dtype: torch.dtype) -> None:
    require(candidate, dtype)
    torch.manual_seed(0)
    q, k, v = (torch.randn(70, heads, 32, device=DEVICE).to(dtype) for heads in (4, 2, 2))
    expected = reference(q, *(x.repeat_interleave(2, dim=1) for x in (k, v)), causal=True)
    assert relative(candidate.run(q, k, v, 1), expected) < BOUNDS[dtype]


def test_products_compute_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(130, 2, 128) for _ in range(3))
    whole = attention.products(q, k, v, 1)
    monkeypatch.setattr(attention, "SCORES", 130 * 50)
    torch.testing.assert_close(attention.products(q, k, v, 1), whole)


@pytest.mark.parametrize(
    ("keys", "length"),
    [
        (1, "tiny"),
        (127, "tiny"),
        (128, "short"),
        (511, "short"),
        (512, "medium"),
        (2047, "medium"),
        (2048, "long"),
    ],
)
def test_the_kernel_depends_on_the_keys_of_a_sample_alone(keys: int, length: Length) -> None:
    assert length_class(keys) == length
    attend, seen = Attend(1, 1, 8), []
    attend.kernels[length] = lambda q, k, v, samples: seen.append(samples) or q  # type: ignore[func-returns-value]
    x, rows = torch.zeros(2 * keys, 1, 8), Rows.build([keys, keys], "cpu")
    attend.packed(x[:keys], x[:keys], x[:keys], Rows.build([keys], "cpu"), Rows.build([keys], "cpu"))
    attend.packed(x, x, x, rows, rows)
    assert seen == [1, 2]
