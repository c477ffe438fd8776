"""Low-rank updates compared with the plain expression, on every form of the layers that they change."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.candidates import Candidate, Machine
from engine.kernels.feed_forward import CANDIDATES, FeedForward
from engine.kernels.low_rank import Factors, LowRank, Masks, Span, by_span, stacked
from engine.models.low_rank import BatchUpdates, adapted

WIDTH, HIDDEN, RANK = 32, 2080, 3
OFFSETS = (0, 5, 6, 13, 20)


def factors(inputs: int, outputs: int, pieces: int) -> Factors:
    return Factors(
        torch.randn(pieces * RANK, inputs) / inputs**0.5, torch.randn(pieces, outputs // pieces, RANK)
    )


def update(each: Factors) -> Tensor:
    """The matrix (out, in) that these factors add."""
    downs = each.down.chunk(len(each.up))
    return torch.cat([up @ down for up, down in zip(each.up, downs, strict=True)])


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
@torch.inference_mode()
def test_a_feed_forward_layer_of_any_form(candidate: Candidate) -> None:
    if not candidate.is_correct(Machine("cpu", torch.float32)):
        pytest.skip("not on this machine")
    torch.manual_seed(0)
    plain = FeedForward(WIDTH, HIDDEN)
    blocks = tuple(
        ({"w13": factors(WIDTH, 2 * HIDDEN, 2), "w2": factors(HIDDEN, WIDTH, 1)},) for _ in range(2)
    )
    applied = [((blocks[0], 0.5),), (), (), ((blocks[0], 0.5), (blocks[1], -2.0))]
    batch = BatchUpdates.of(applied)
    assert batch is not None
    x = torch.randn(OFFSETS[-1], WIDTH)
    actual = adapted(candidate.run(plain), x, batch.block(0, OFFSETS, LowRank(WIDTH)))
    for start, end, sample in zip(OFFSETS, OFFSETS[1:], applied, strict=False):
        w13, w2 = plain.w13.weight.clone(), plain.w2.weight.clone()
        for block, scale in sample:
            w13 += scale * update(block[0]["w13"])
            w2 += scale * update(block[0]["w2"])
        gate, up = F.linear(x[start:end], w13).chunk(2, dim=1)
        torch.testing.assert_close(actual[start:end], F.linear(F.silu(gate) * up, w2), atol=1e-4, rtol=1e-4)


def test_neighbours_with_the_same_adapters_share_a_product() -> None:
    block = {"o": factors(WIDTH, WIDTH, 1)}
    blocks = (block,)
    batch = BatchUpdates.of([((blocks, 1.0),), ((blocks, 1.0),), ((blocks, 0.5),), ()])
    assert batch is not None
    spans = batch.block(0, OFFSETS, LowRank(WIDTH)).spans
    assert spans == ((0, 6, block, 1.0), (6, 13, block, 0.5))


def test_without_adapters_there_is_nothing_to_update() -> None:
    assert BatchUpdates.of([(), ()]) is None


def random_factors(rank: int, pieces: int) -> Factors:
    return Factors(torch.randn(pieces * rank, WIDTH), torch.randn(pieces, 3 * WIDTH // pieces, rank))


@pytest.mark.parametrize("pieces", [1, 3])
@torch.inference_mode()
def test_stacked_products_equal_those_one_by_one(pieces: int) -> None:
    """Of three adapters of different ranks, two of which overlap, with rows that none changes."""
    torch.manual_seed(0)
    x, y = torch.randn(20, WIDTH), torch.randn(20, 3 * WIDTH)
    bounds = ((2, 9, 0.5), (9, 15, -2.0), (5, 12, 1.0))
    spans = [
        Span(begin, end, random_factors(rank, pieces), scale)
        for rank, (begin, end, scale) in enumerate(bounds, start=2)
    ]
    expected, actual, masks = y.clone(), y.clone(), Masks()
    by_span(expected.chunk(pieces, dim=1), x, spans, masks)
    for _ in range(2):  # the second time with the mask of the first
        actual.copy_(y)
        stacked(actual.chunk(pieces, dim=1), x, spans, masks)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(actual[15:], y[15:])
    assert (actual - y).abs().max() > 1


@torch.inference_mode()
def test_an_overflow_stays_in_the_rows_of_its_adapter() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(9, WIDTH), torch.zeros(9, WIDTH)
    huge = Factors(torch.full((2, WIDTH), 3e38), torch.ones(1, WIDTH, 2))
    usual = Factors(torch.randn(2, WIDTH), torch.randn(1, WIDTH, 2))
    spans = [Span(0, 3, huge, 1.0), Span(3, 6, usual, 1.0)]
    stacked([y], x, spans, Masks())
    assert not y[:3].isfinite().any()
    assert y[3:].isfinite().all()


def test_stacked_products_are_for_small_ranks() -> None:
    layer, used = LowRank(WIDTH), []
    layer.kernel = lambda outputs, x, spans, masks: used.append(len(spans))
    x, y = torch.randn(4, WIDTH), torch.zeros(4, WIDTH)
    for ranks in ((64, 64), (64, 65)):
        each = [Factors(torch.randn(rank, WIDTH), torch.randn(1, WIDTH, rank)) for rank in ranks]
        layer([y], x, [Span(2 * i, 2 * i + 2, made, 1.0) for i, made in enumerate(each)], Masks())
    assert used == [2]
    assert y.abs().amax(dim=1).min() > 0
