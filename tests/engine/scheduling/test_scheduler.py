"""Fairness, limits, joins and aborts of the scheduler, on a fake runner."""

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count

import pytest

from engine.messages import ImageDone, RequestDone, RequestFailed, StepDone, UnitStarted
from engine.request import Priority
from engine.runner.request_state import BatchKey
from engine.scheduling.scheduler import STRETCH
from engine.scheduling.units import Decode, Encode, Unit
from engine.scheduling.work_queue import QueueKey
from tests.engine.fakes import COST, Engine, joined, request, step_seconds

SIZES: list[BatchKey] = [(64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (512, 512)]


# Between work queues.


class Audit:
    """Runs units of work and checks the scheduler's bound: between two units of a queue, each other queue
    spends at most two quanta if the waiting one is interactive, else twelve. Sharing a step counts as a
    unit."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.spent: dict[QueueKey, dict[QueueKey, float]] = {}
        self.quanta: dict[QueueKey, float] = {}  # the greatest since the last unit of the queue
        self.longest_wait = 0.0

    def step(self) -> QueueKey:
        scheduler = self.engine.scheduler
        units = scheduler.candidates()
        self._follow(set(units), max(unit.seconds for unit in units.values()))
        unit = scheduler.next_unit()
        assert unit is not None
        costs = costs_by_queue(unit)
        for key, cost in costs.items():
            self._spend(key, cost)
        for key in costs:
            self.spent[key], self.quanta[key] = {}, 0.0
        self.engine.core._run(unit)
        return next(iter(costs))

    def _spend(self, key: QueueKey, cost: float) -> None:
        for waiting, others in self.spent.items():
            if waiting != key:
                others[key] = others.get(key, 0.0) + cost
                bound = (2 if waiting.priority == "interactive" else 12) * self.quanta[waiting]
                assert others[key] < bound + 1e-9, f"{waiting} is kept waiting by {key}"
                self.longest_wait = max(self.longest_wait, sum(others.values()))

    def _follow(self, candidates: set[QueueKey], quantum: float) -> None:
        self.spent = {key: self.spent.get(key, {}) for key in candidates}
        self.quanta = {key: max(quantum, self.quanta.get(key, 0.0)) for key in candidates}


def costs_by_queue(unit: Unit) -> dict[QueueKey, float]:
    """Split the seconds of a unit: its own queue pays for its samples, another one for what it adds."""
    if isinstance(unit, Encode):
        return {QueueKey.of(unit.requests[0]): unit.seconds}
    if isinstance(unit, Decode):
        return {QueueKey.of(unit.samples[0].state): unit.seconds}
    first = QueueKey.of(unit.samples[0].state)
    own = step_seconds([sample for sample in unit.samples if QueueKey.of(sample.state) == first])
    others = {QueueKey.of(sample.state): unit.seconds - own for sample in unit.samples}
    return {first: own} | {key: cost for key, cost in others.items() if key != first}


def test_resolutions_that_come_and_go_do_not_starve_another() -> None:
    """Each adversary leaves after its unit, in the middle of its turn, and then comes back."""
    engine = Engine()
    audit = Audit(engine)
    names = (str(number) for number in count())
    engine.add(request("victim", (64, 64), steps=200))
    others = SIZES[1:4]
    audit.step()
    while engine.ids(StepDone).count("victim") < 20:
        busy = {state.batch_key for state in engine.scheduler._requests.values()}
        engine.add(*(request(next(names), size, steps=1) for size in others if size not in busy))
        key = audit.step()
        for state in list(engine.scheduler._requests.values()):
            if state.batch_key == key.batch_key != (64, 64):
                engine.core.abort(state.request.request_id)
    assert audit.longest_wait < 2 * len(others) * step_of(SIZES[3])


@pytest.mark.parametrize("seed", range(5))
def test_the_bound_holds_with_random_arrivals_and_aborts(seed: int) -> None:
    rng = random.Random(seed)
    engine = Engine(max_running=6)
    audit = Audit(engine)
    added, aborted = set[str](), set[str]()
    for name in map(str, range(80)):
        engine.add(random_request(rng, name, engine.runner.now))
        added.add(name)
        for _ in range(rng.randrange(12)):
            if engine.core.has_work:
                audit.step()
        if rng.random() < 0.2 and engine.scheduler._requests:
            engine.core.promote(rng.choice(sorted(engine.scheduler._requests)), "interactive")
            aborted.add(victim := rng.choice(sorted(engine.scheduler._requests)))
            engine.core.abort(victim)
        assert engine.scheduler.num_running <= 6
    while engine.core.has_work:
        audit.step()
    assert sorted(engine.ids(RequestDone)) == sorted(added - aborted)
    assert not engine.scheduler._order, "a queue is left"
    assert set(engine.scheduler._seats._taken.values()) == {0}, "a seat is left"


def random_request(rng: random.Random, name: str, now: float):  # type: ignore[no-untyped-def]
    return request(
        name,
        rng.choice(SIZES),
        steps=rng.randrange(1, 12),
        images=rng.randrange(1, 5),
        submitted=now,
        prompt_tokens=rng.choice([1, 10, 200]),
        priority=rng.choice(["interactive", "batch"]),
    )


def test_a_small_image_does_not_wait_for_all_large_ones() -> None:
    engine = Engine()
    engine.add(*(request(f"large-{i}", (512, 512), steps=48) for i in range(20)))
    engine.until(lambda: engine.of(StepDone))
    engine.add(request("small", (64, 64), steps=12))
    before = engine.runner.now
    engine.until(lambda: engine.of(RequestDone))
    assert engine.ids(RequestDone) == ["small"]
    alone = COST.request_seconds(request("small", (64, 64), steps=12))
    # A turn of the small one has many cheap steps, and one large step runs between two turns.
    assert engine.runner.now - before < alone + 8 * step_of((512, 512))


def test_priority_batch_gets_a_tenth_of_an_interactive_resolutions_share() -> None:
    engine = Engine(max_batch_size=1)
    engine.add(
        request("interactive", (128, 128), steps=400), request("batch", (128, 64), 900, priority="batch")
    )
    spent = {"interactive": 0.0, "batch": 0.0}
    while engine.ids(StepDone).count("interactive") < 300:
        started = next(message for message in engine.step() if isinstance(message, UnitStarted))
        spent[started.request_ids[0]] += started.expected_seconds
    assert spent["batch"] / spent["interactive"] == pytest.approx(0.1, rel=0.2)


def test_a_deficit_saved_for_an_expensive_unit_is_not_spent_on_many_cheap_ones() -> None:
    engine = Engine(max_batch_size=64)
    engine.add(request("victim", SIZES[1], steps=400), request("expensive", SIZES[5], steps=400))
    engine.add(*(request(str(i), steps=400, prompt_tokens=1) for i in range(14)))
    engine.until(
        lambda: any(
            queue.deficit > 0.04 for queue in engine.scheduler._order if queue.key.batch_key == SIZES[0]
        )
    )
    for name in ("expensive", *map(str, range(1, 14))):
        engine.core.abort(name)
    audit = Audit(engine)
    for _ in range(30):
        audit.step()


def step_of(size: BatchKey) -> float:
    return COST.step_seconds(COST.image_tokens(*size), [10], 1)


# Priorities.


class Clients:
    """Clients that each send an interactive request as soon as their previous one is done."""

    def __init__(self, engine: Engine, size: BatchKey = (64, 64), steps: int = 4) -> None:
        self._engine = engine
        self._names = (f"client-{number}" for number in count())
        self._size, self._steps = size, steps

    def arrive(self, number: int) -> None:
        now = self._engine.runner.now
        self._engine.add(
            *(request(next(self._names), self._size, self._steps, submitted=now) for _ in range(number))
        )

    def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.arrive(sum(isinstance(message, RequestDone) for message in self._engine.step()))


@pytest.mark.parametrize("max_batch_size", [1, 2, 8])
@pytest.mark.parametrize("max_running", [1, 2, 3, 64])
@pytest.mark.parametrize("number", [1, 16, 70])
def test_batch_is_not_starved_by_interactive_requests_of_its_size(
    max_batch_size: int, max_running: int, number: int
) -> None:
    """It may take ten times its cost to get a seat, and as long again to finish."""
    engine = Engine(max_batch_size=max_batch_size, max_running=max_running)
    clients = Clients(engine)
    clients.arrive(number)
    clients.until(lambda: engine.of(RequestDone))
    batch = request("batch", priority="batch", submitted=engine.runner.now)
    engine.add(batch)
    bound = batch.submitted + 24 * COST.request_seconds(batch)
    clients.until(lambda: "batch" in engine.ids(RequestDone) or engine.runner.now > bound)
    assert engine.ids(RequestDone).count("batch") == 1


@pytest.mark.parametrize("max_batch_size", [1, 8])
def test_batch_gets_a_tenth_of_what_interactive_requests_of_its_size_get(max_batch_size: int) -> None:
    engine = Engine(max_batch_size=max_batch_size)
    engine.add(*(request(f"interactive-{i}", steps=1000) for i in range(20)))
    engine.add(*(request(f"batch-{i}", steps=1000, priority="batch") for i in range(20)))
    engine.until(lambda: len(engine.runner.steps) == 200)
    spent = dict.fromkeys(["interactive", "batch"], 0.0)
    while len(engine.runner.steps) < 1000:
        unit = engine.scheduler.next_unit()
        assert unit is not None
        for key, cost in costs_by_queue(unit).items():
            spent[key.priority] += cost
        engine.core._run(unit)
    assert spent["batch"] / spent["interactive"] == pytest.approx(0.1, rel=0.1)


def test_batch_samples_fill_a_step_up_to_their_share() -> None:
    """A step of the interactive sample takes 8.2 ms, and each other sample adds 4.2 ms."""
    engine = Engine()
    engine.add(*(request(f"batch-{i}", steps=1000, priority="batch") for i in range(8)))
    engine.until(lambda: len(max(engine.runner.steps, default=[], key=len)) == 8)
    interactive = request("interactive", steps=100, submitted=engine.runner.now)
    engine.add(interactive)
    before = len(engine.runner.steps)
    engine.until(lambda: "interactive" in engine.ids(RequestDone))
    assert engine.runner.now - interactive.submitted < 1.15 * COST.request_seconds(interactive)
    batches = engine.runner.steps[before:]
    mixed = joined(batches, "interactive")
    assert sum(len(batch) - 1 for batch in mixed) >= 15, "a tenth of the time allows as many"
    assert len(batches) - len(mixed) <= 3, "apart from some while it was encoded and decoded"


@pytest.mark.parametrize("images", [1, 10])
@pytest.mark.parametrize(("max_running", "slowdown"), [(1, 1.7), (2, 1.2), (3, 1.2), (8, 1.2), (64, 1.2)])
def test_batch_does_not_hold_the_seats_of_an_interactive_request(
    max_running: int, slowdown: float, images: int
) -> None:
    """With a single seat, it waits for one batch image."""
    engine = Engine(max_running=max_running)
    engine.add(*(request(f"b{i}", images=images, steps=20, priority="batch") for i in range(100 // images)))
    engine.until(lambda: len(engine.runner.steps) == 150)
    assert engine.scheduler.num_running <= max(1, max_running // 2)
    interactive = request("interactive", steps=20, submitted=engine.runner.now)
    engine.add(interactive)
    engine.until(lambda: "interactive" in engine.ids(RequestDone))
    took = engine.runner.now - interactive.submitted
    assert took < slowdown * COST.request_seconds(interactive)


# Within a work queue.


def test_a_short_request_passes_long_ones() -> None:
    engine = Engine(max_batch_size=1)
    engine.add(*(request(f"long-{i}", steps=48) for i in range(4)))
    engine.until(lambda: engine.of(StepDone))
    engine.add(request("short", steps=4, submitted=engine.runner.now))
    engine.run()
    assert engine.ids(RequestDone) == ["short", "long-0", "long-1", "long-2", "long-3"]


def test_a_stream_of_short_requests_passes_a_long_one_only_until_it_is_due() -> None:
    engine = Engine(max_batch_size=1)
    long = request("long", steps=20)
    engine.add(long)
    short = request("short", steps=1)
    for name in map(str, range(1000)):
        engine.add(replace(short, request_id=name, submitted=engine.runner.now))
        # There are always two short ones, so if they always passed, the long one would never run.
        engine.until(lambda: len(engine.scheduler._requests) == 2 or "long" in engine.ids(RequestDone))
        if "long" in engine.ids(RequestDone):
            break
    # Once it is due, only slices of encodes and decodes run between its steps.
    bound = (STRETCH + 2) * COST.request_seconds(long) + 2 * COST.request_seconds(short)
    assert STRETCH * COST.request_seconds(long) / 2 < engine.runner.now < bound


def test_a_request_joins_at_the_next_step_and_leaves_when_done() -> None:
    engine = Engine()
    engine.add(request("first", steps=10))
    engine.until(lambda: engine.runner.steps)
    engine.add(request("second", steps=3))
    before = len(engine.runner.steps)
    engine.until(lambda: "second" in engine.ids(RequestDone))
    theirs = joined(engine.runner.steps, "second")
    assert [sorted(batch) for batch in theirs] == [["first", "second"]] * 3
    # A step ran after each slice of its encode; it joined the next one.
    assert engine.runner.steps[before:].index(theirs[0]) <= 2
    engine.run()
    assert engine.runner.steps[-1] == ["first"]


def test_requests_whose_encodes_fit_in_a_step_join_together() -> None:
    engine = Engine()
    engine.add(*(request(name, steps=3, prompt_tokens=1) for name in "abcdefgh"))
    engine.run()
    assert [sorted(batch) for batch in engine.runner.steps] == [list("abcdefgh")] * 3


def test_requests_of_different_lengths_and_progress_share_a_batch() -> None:
    engine = Engine()
    engine.add(request("a", steps=9, prompt_tokens=1), request("b", steps=3, prompt_tokens=20))
    engine.run()
    assert sorted(max(engine.runner.steps, key=len)) == ["a", "b"]
    assert len(joined(engine.runner.steps, "a")) == 9
    assert len(joined(engine.runner.steps, "b")) == 3


def test_the_prompt_is_encoded_once_for_all_images() -> None:
    engine = Engine()
    engine.add(request("four", images=4))
    engine.run()
    assert engine.runner.encodes == [["four"]]
    assert engine.runner.steps == [["four"] * 4] * 4
    assert [image.seed for image in engine.of(ImageDone)] == [0, 1, 2, 3]


# Limits.


def test_the_number_of_samples_in_a_batch_is_limited() -> None:
    engine = Engine(max_batch_size=3)
    engine.add(*(request(str(i), steps=40) for i in range(10)))
    engine.run()
    assert max(map(len, engine.runner.steps)) == 3


def test_the_number_of_tokens_in_a_batch_is_limited() -> None:
    engine = Engine(max_batch_tokens=60)
    engine.add(*(request(str(i), prompt_tokens=10) for i in range(5)))  # 16 + 10 tokens each
    engine.add(request("long", prompt_tokens=100, submitted=1e-6))
    engine.run()
    assert max(map(len, engine.runner.steps)) == 2
    assert joined(engine.runner.steps, "long") == [["long"]] * 4
    assert len(engine.of(RequestDone)) == 6


def test_a_batch_does_not_grow_once_it_gains_nothing() -> None:
    """With 380 tokens the fixed cost is a twentieth: 14 samples of 64 x 64, or one of 512 x 512."""
    engine = Engine(max_batch_size=64)
    engine.add(*(request(f"s{i}", (64, 64), steps=60) for i in range(30)))
    engine.add(*(request(f"l{i}", (512, 512)) for i in range(3)))
    engine.run()
    small = [batch for batch in engine.runner.steps if batch[0].startswith("s")]
    large = [batch for batch in engine.runner.steps if batch[0].startswith("l")]
    assert (max(map(len, small)), max(map(len, large))) == (14, 1)


def test_the_number_of_samples_in_memory_is_limited() -> None:
    engine = Engine(max_running=4)
    engine.add(*(request(str(i), SIZES[i % 3], images=2) for i in range(9)))
    while engine.core.has_work:
        engine.step()
        assert engine.scheduler.num_running <= 4
    assert len(engine.of(RequestDone)) == 9


def test_single_images_do_not_starve_a_request_of_many_images() -> None:
    """Later single images of other sizes wait until it has its seats."""
    engine = Engine(max_running=4)
    engine.add(*(request(f"before-{i}", SIZES[1]) for i in range(4)))
    engine.until(lambda: engine.scheduler.num_running == 4)
    engine.add(request("many", images=4, submitted=engine.runner.now))
    names = map(str, count())
    late = (request(next(names), SIZES[2 + i % 2], 1, submitted=engine.runner.now + 60) for i in count())
    while "many" not in engine.ids(RequestDone):
        engine.add(next(late))
        engine.step()
    assert len(engine.of(RequestDone)) == 5


@pytest.mark.parametrize("priority", ["interactive", "batch"])
@pytest.mark.parametrize("max_running", [1, 2, 4])
def test_a_request_may_have_more_images_than_there_are_seats(max_running: int, priority: Priority) -> None:
    engine = Engine(max_running=max_running)
    engine.add(request("many", images=10, priority=priority), request("one", SIZES[1], submitted=9.0))
    while engine.core.has_work:
        assert engine.step(), "there is work, and nothing ran"
        assert engine.scheduler.num_running <= max_running
    assert [image.image_index for image in engine.of(ImageDone, "many")] == list(range(10))
    assert engine.runner.encodes.count(["many"]) == 1
    assert len(engine.of(RequestDone)) == 2


def test_a_request_of_many_images_does_not_starve_single_ones() -> None:
    engine = Engine(max_running=4)
    engine.add(request("many", images=10, steps=40))
    engine.until(lambda: engine.scheduler.num_running == 4)
    engine.add(request("one", submitted=engine.runner.now))
    engine.until(lambda: "one" in engine.ids(RequestDone))
    assert engine.ids(ImageDone).count("many") <= 4


# Encoding and decoding.


def test_encodes_and_decodes_delay_running_samples_by_a_step_at_most() -> None:
    engine = Engine()
    engine.add(request("running", steps=60))
    engine.until(lambda: engine.runner.steps)
    long = 100 * step_of((64, 64))  # in a prompt
    engine.add(
        request("prompt", SIZES[4], prompt_tokens=round(long * 1000)), request("same", prompt_tokens=300)
    )
    gaps = list(gaps_between_steps(engine, "running"))
    # A slice ends with a part, which takes a millisecond here.
    assert max(gaps) <= 4 * quantum_of(engine) + 0.002
    assert "prompt" not in engine.ids(RequestDone)


def quantum_of(engine: Engine) -> float:
    return max(message.expected_seconds for message in engine.of(UnitStarted))


def gaps_between_steps(engine: Engine, request_id: str) -> Iterator[float]:
    """Yield the seconds between the end of each of its steps and the start of the next."""
    ended = engine.runner.now
    while request_id not in engine.ids(RequestDone):
        before, now = len(joined(engine.runner.steps, request_id)), engine.runner.now
        if not engine.step():
            return
        if len(joined(engine.runner.steps, request_id)) > before:
            yield now - ended
            ended = engine.runner.now


def test_a_long_decode_in_the_same_resolution_is_sliced() -> None:
    engine = Engine()
    engine.add(request("short", (512, 512), steps=2), request("long", (512, 512), steps=40))
    engine.until(lambda: engine.ids(StepDone).count("short") == 2)
    assert "short" not in engine.ids(ImageDone)
    gaps = list(gaps_between_steps(engine, "long"))
    assert max(gaps) <= step_of((512, 512)) + 0.002
    assert "short" in engine.ids(RequestDone)


def test_a_sample_that_shares_steps_does_not_block_decodes_of_its_queue() -> None:
    engine = Engine()
    engine.add(request("interactive", steps=5000), request("long", steps=3000, priority="batch"))
    engine.until(lambda: "long" in engine.ids(StepDone))
    engine.add(request("short", steps=3, priority="batch", prompt_tokens=20, submitted=engine.runner.now))
    engine.until(lambda: "short" in engine.ids(RequestDone))
    assert engine.ids(StepDone).count("long") < 30


def test_the_delay_is_reset_when_the_delayed_samples_are_gone() -> None:
    engine = Engine()
    engine.add(request("aborted", steps=100))
    engine.until(lambda: engine.runner.steps)
    engine.add(request("next", prompt_tokens=20), request("last", prompt_tokens=20, submitted=1.0))
    (queue,) = engine.scheduler._order
    engine.until(lambda: queue.delay)
    engine.core.abort("aborted")
    engine.until(lambda: queue.running)
    assert engine.scheduler._order[0].delay == 0


# Aborts.


@pytest.mark.parametrize("units", range(0, 60, 3))
def test_a_request_can_be_aborted_in_any_phase(units: int) -> None:
    engine = Engine()
    engine.add(request("aborted", steps=5, prompt_tokens=50, images=2), request("other", SIZES[1], steps=40))
    for _ in range(units):
        engine.step()
    engine.core.abort("aborted")
    sent = len(engine.sent)
    engine.run()
    assert not [message for message in engine.sent[sent:] if "aborted" in repr(message)]
    assert "other" in engine.ids(RequestDone)
    assert engine.scheduler.num_running == 0


def test_an_aborted_request_frees_its_seats() -> None:
    engine = Engine(max_running=2)
    engine.add(request("first", images=2), request("next", submitted=1.0))
    engine.until(lambda: engine.runner.steps)
    engine.core.abort("first")
    engine.run()
    assert engine.ids(RequestDone) == ["next"]
    assert joined(engine.runner.steps, "first") == [["first", "first"]]


def test_aborting_an_unknown_request_is_ignored() -> None:
    engine = Engine()
    engine.core.abort("nobody")
    assert not engine.core.has_work
    assert not engine.step()


# Suspects.


def test_suspects_run_alone_and_other_requests_together() -> None:
    engine = Engine()
    engine.add(
        *(request(f"suspect-{i}", is_suspect=True) for i in range(2)), *(request(str(i)) for i in range(3))
    )
    engine.run()
    for name in ("suspect-0", "suspect-1"):
        assert joined(engine.runner.steps, name) == [[name]] * 4
    assert ["0", "1", "2"] in engine.runner.steps
    assert not engine.of(RequestFailed)


@pytest.mark.parametrize("priority", ["interactive", "batch"])
def test_suspects_and_other_requests_share_the_device(priority: Priority) -> None:
    engine = Engine()
    engine.add(*(request(f"suspect-{i}", steps=100, images=2, is_suspect=True) for i in range(2)))
    engine.add(*(request(str(i), steps=100, submitted=1.0, priority=priority) for i in range(3)))
    engine.until(lambda: len(joined(engine.runner.steps, "0")) >= 4)
    steps = [len(joined(engine.runner.steps, f"suspect-{i}")) for i in range(2)]
    assert all(steps), "suspects run too"
    engine.until(lambda: all(len(joined(engine.runner.steps, f"suspect-{i}")) == 200 for i in range(2)))
    assert sum(steps) < 400, "suspects are not preferred"


# Promotion.


@pytest.mark.parametrize("units", range(14))
def test_a_request_can_be_promoted_in_any_phase(units: int) -> None:
    engine = Engine(max_batch_size=1, max_running=8)
    engine.add(request("promoted", steps=3, images=2, prompt_tokens=20, priority="batch"))
    engine.add(*(request(f"batch-{i}", steps=40, priority="batch", submitted=1.0) for i in range(8)))
    for _ in range(units):
        engine.step()
    assert "promoted" not in engine.ids(RequestDone)
    engine.add(*(request(f"other-{i}", steps=20, submitted=2.0) for i in range(4)))
    engine.core.promote("promoted", "interactive")
    promoted = engine.runner.now
    engine.until(lambda: "promoted" in engine.ids(RequestDone))
    assert engine.ids(RequestDone) == ["promoted"]
    whole = COST.request_seconds(request("promoted", steps=3, images=2, prompt_tokens=20))
    assert engine.runner.now - promoted < 2 * whole


def test_a_promoted_request_gets_a_seat_before_other_batch_requests() -> None:
    engine = Engine(max_running=4)
    engine.add(*(request(f"batch-{i}", steps=200, priority="batch") for i in range(8)))
    engine.until(lambda: len(engine.runner.steps) > 5)
    engine.core.promote("batch-7", "interactive")
    engine.run()
    assert engine.ids(RequestDone)[0] == "batch-7"


def test_promoting_an_unknown_request_is_ignored() -> None:
    engine = Engine()
    engine.core.promote("nobody", "interactive")
    assert not engine.core.has_work


# Complexity.


def test_the_cost_of_scheduling_does_not_depend_on_the_number_of_waiting_requests() -> None:
    few, many = calls_for_the_next_unit(100), calls_for_the_next_unit(2000)
    assert many < 1.2 * few


def calls_for_the_next_unit(waiting: int) -> int:
    """Average number of Python calls for `next_unit`, with requests of 50 sizes."""
    engine = Engine()
    for i in range(waiting):
        size = (64 + 16 * (i % 50), 64)
        engine.add(
            request(str(i), size, priority="batch" if i % 4 == 0 else "interactive", submitted=i / 1e3)
        )
    calls = 0

    def count_call(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    for _ in range(50):
        sys.setprofile(count_call)
        unit = engine.scheduler.next_unit()
        sys.setprofile(None)
        assert unit is not None
        engine.core._run(unit)
    return calls // 50
