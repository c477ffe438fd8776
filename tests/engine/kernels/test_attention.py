"""Attention implementations on a CPU, compared with softmax attention in float64."""

import pytest
import torch
from torch import Tensor

from engine.kernels import attention
from engine.kernels.attention import packed_attention
from engine.kernels.packing import Rows
from tests.engine.conftest import relative


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One sample: (Q, H, K)."""
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).transpose(0, 1)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the number of samples of each attention by matrix products."""
    seen: list[int] = []
    plain = attention._by_products

    def spy(q: Tensor, k: Tensor, v: Tensor, samples: int) -> Tensor:
        seen.append(samples)
        return plain(q, k, v, samples)

    monkeypatch.setattr(attention, "_by_products", spy)
    return seen


@pytest.mark.parametrize(
    ("dtype", "head_dim", "keys", "bound", "by_products"),
    [
        (torch.float32, 128, [300, 300], 1e-6, []),
        (torch.bfloat16, 128, [300, 300], 1e-2, [2]),
        (torch.bfloat16, 128, [300, 200], 1e-2, [1, 1]),
        (torch.bfloat16, 128, [100, 100], 1e-2, []),  # too few keys to gain
        (torch.bfloat16, 64, [300, 300], 1e-2, []),  # heads too small to gain
    ],
)
@pytest.mark.parametrize("image_alone", [False, True])
def test_each_implementation_is_attention(
    products: list[int],
    dtype: torch.dtype,
    head_dim: int,
    keys: list[int],
    bound: float,
    by_products: list[int],
    image_alone: bool,
) -> None:
    torch.manual_seed(0)
    queries = [length - 30 for length in keys] if image_alone else keys
    q, k, v = (torch.randn(sum(n), 3, head_dim, dtype=dtype) for n in (queries, keys, keys))
    attended = packed_attention(q, k, v, Rows.build(queries, "cpu"), Rows.build(keys, "cpu"))
    expected = [
        reference(*sample) for sample in zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    ]
    assert relative(attended, torch.cat(expected)) < bound
    assert products == by_products


@pytest.mark.parametrize("lens", [[7, 7], [3, 9, 1]])
def test_causal_attention_of_several_samples(lens: list[int]) -> None:
    """With grouped keys and values, as in the text encoder."""
    torch.manual_seed(0)
    q, (k, v) = torch.randn(sum(lens), 4, 32), torch.randn(2, sum(lens), 2, 32)
    rows = Rows.build(lens, "cpu")
    attended = packed_attention(q, k, v, rows, rows, causal=True).split(lens)
    for sample, queries, keys, values in zip(
        attended, q.split(lens), k.split(lens), v.split(lens), strict=True
    ):
        for last in range(len(queries)):
            earlier = (x[: last + 1].repeat_interleave(2, dim=1) for x in (keys, values))
            expected = reference(queries[last : last + 1], *earlier)
            assert relative(sample[last : last + 1], expected) < 1e-6


def test_the_scores_are_computed_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(130, 2, 128, dtype=torch.bfloat16) for _ in range(3))
    rows = Rows.build([130], "cpu")
    whole = packed_attention(q, k, v, rows, rows)
    monkeypatch.setattr(attention, "SCORES", 130 * 50)
    torch.testing.assert_close(packed_attention(q, k, v, rows, rows), whole)
