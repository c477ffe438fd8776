"""Fairness, limits, joins and aborts, on a runner without a model."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

from engine.messages import ImageDone, RequestDone, RequestFailed, StepDone, UnitStarted
from engine.request import BatchKey
from engine.scheduler import STRETCH, Decode, Denoise, Encode, Unit
from tests.engine.fakes import COST, Engine, joined, request

SIZES: list[BatchKey] = [(64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (512, 512)]


# Between resolutions.


def key_of(unit: Unit) -> BatchKey:
    match unit:
        case Encode(state):
            return state.batch_key
        case Denoise(samples):
            return samples[0].batch_key
        case Decode(sample):
            return sample.batch_key


class Audit:
    """Runs a scheduler's units and checks its bound: between two turns of a resolution with a unit at hand,
    each other one spends less than two quanta."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.spent: dict[BatchKey, dict[BatchKey, float]] = {}
        self.quantum = 0.0
        self.longest_wait = 0.0

    def step(self) -> BatchKey:
        scheduler = self.engine.scheduler
        units = scheduler.at_hand()
        self._follow(set(units))
        self.quantum = max(self.quantum, *map(scheduler.seconds, units.values()))
        unit = scheduler.next_unit()
        assert unit is not None
        key, cost = key_of(unit), scheduler.seconds(unit)
        for waiting, others in self.spent.items():
            if waiting != key:
                others[key] = others.get(key, 0.0) + cost
                assert others[key] < 2 * self.quantum + 1e-9, f"{waiting} is kept waiting by {key}"
                self.longest_wait = max(self.longest_wait, sum(others.values()))
        self.spent[key] = {}
        self._run(unit)
        return key

    def _follow(self, at_hand: set[BatchKey]) -> None:
        for key in self.spent.keys() - at_hand:
            del self.spent[key]
        for key in at_hand - self.spent.keys():
            self.spent[key] = {}

    def _run(self, unit: Unit) -> None:
        """As the core does it."""
        core = self.engine.core
        match unit:
            case Encode(state):
                core._encode(state)
            case Denoise(samples):
                core._denoise(samples)
            case Decode(sample):
                core._decode(sample)


def test_resolutions_that_come_and_go_do_not_starve_one_that_stays() -> None:
    """Each adversary leaves with its turn, so that the next in line inherits it, and comes back behind."""
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
            if state.batch_key == key != (64, 64):
                engine.core.abort(state.request.request_id)
    assert audit.longest_wait < 2 * len(others) * audit.quantum


@pytest.mark.parametrize("seed", range(5))
def test_random_arrivals_and_aborts_keep_the_bound_and_all_are_answered(seed: int) -> None:
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
            aborted.add(victim := rng.choice(sorted(engine.scheduler._requests)))
            engine.core.abort(victim)
        assert engine.scheduler.num_running <= 6
    while engine.core.has_work:
        audit.step()
    assert sorted(engine.ids(RequestDone)) == sorted(added - aborted)


def random_request(rng: random.Random, name: str, now: float):  # type: ignore[no-untyped-def]
    return request(
        name,
        rng.choice(SIZES),
        steps=rng.randrange(1, 12),
        images=rng.randrange(1, 5),
        submitted=now,
        prompt_tokens=rng.choice([1, 10, 200]),
    )


def test_a_small_image_is_not_behind_a_queue_of_large_ones() -> None:
    engine = Engine()
    engine.add(*(request(f"large-{i}", (512, 512), steps=48) for i in range(20)))
    engine.until(lambda: engine.of(StepDone))
    engine.add(request("small", (64, 64), steps=12))
    before = engine.runner.now
    engine.until(lambda: engine.of(RequestDone))
    assert engine.ids(RequestDone) == ["small"]
    alone = COST.request_seconds(request("small", (64, 64), steps=12))
    # One large step in each of the turns that its cheap steps take, and few are needed.
    assert engine.runner.now - before < alone + 8 * large_step()


def large_step() -> float:
    return COST.step_seconds(COST.image_tokens(512, 512), [10], 1)


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


# Within one.


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
        # There are always two of them, so the long one would never run if they always passed.
        engine.until(lambda: len(engine.scheduler._requests) == 2 or "long" in engine.ids(RequestDone))
        if "long" in engine.ids(RequestDone):
            break
    # Once due it is first; only other prompts and pictures come between its steps, one slice each.
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
    # A step ran beside each slice of its prompt; the next had it in.
    assert engine.runner.steps[before:].index(theirs[0]) <= 2
    engine.run()
    assert engine.runner.steps[-1] == ["first"]


def test_requests_whose_prompts_take_no_longer_than_a_step_join_together() -> None:
    engine = Engine()
    engine.add(*(request(name, steps=3, prompt_tokens=1) for name in "abcdefgh"))
    engine.run()
    assert [sorted(batch) for batch in engine.runner.steps] == [list("abcdefgh")] * 3


def test_steps_guidance_sizes_of_prompts_and_progress_mix_in_a_batch() -> None:
    engine = Engine()
    engine.add(request("a", steps=9, prompt_tokens=1), request("b", steps=3, prompt_tokens=20))
    engine.run()
    assert sorted(max(engine.runner.steps, key=len)) == ["a", "b"]
    assert len(joined(engine.runner.steps, "a")) == 9
    assert len(joined(engine.runner.steps, "b")) == 3


def test_images_of_one_request_encode_the_prompt_once() -> None:
    engine = Engine()
    engine.add(request("four", images=4))
    engine.run()
    assert engine.runner.encodes == ["four"]
    assert engine.runner.steps == [["four"] * 4] * 4
    assert [image.seed for image in engine.of(ImageDone)] == [0, 1, 2, 3]


# Limits.


def test_batches_have_at_most_so_many_samples() -> None:
    engine = Engine(max_batch_size=3)
    engine.add(*(request(str(i), steps=40) for i in range(10)))
    engine.run()
    assert max(map(len, engine.runner.steps)) == 3


def test_batches_have_at_most_so_many_tokens_unless_one_sample_alone_has_more() -> None:
    engine = Engine(max_batch_tokens=60)
    engine.add(*(request(str(i), prompt_tokens=10) for i in range(5)))  # 16 + 10 tokens each
    engine.add(request("long", prompt_tokens=100, submitted=1e-6))
    engine.run()
    assert max(map(len, engine.runner.steps)) == 2
    assert joined(engine.runner.steps, "long") == [["long"]] * 4
    assert len(engine.of(RequestDone)) == 6


def test_a_batch_ends_where_another_sample_costs_what_it_brings() -> None:
    """The fixed cost is a twentieth of 380 tokens: 14 samples of 64 x 64, one of 512 x 512."""
    engine = Engine(max_batch_size=64)
    engine.add(*(request(f"s{i}", (64, 64), steps=60) for i in range(30)))
    engine.add(*(request(f"l{i}", (512, 512)) for i in range(3)))
    engine.run()
    small = [batch for batch in engine.runner.steps if batch[0].startswith("s")]
    large = [batch for batch in engine.runner.steps if batch[0].startswith("l")]
    assert (max(map(len, small)), max(map(len, large))) == (14, 1)


def test_no_more_samples_are_in_memory_than_allowed() -> None:
    engine = Engine(max_running=4)
    engine.add(*(request(str(i), SIZES[i % 3], images=2) for i in range(9)))
    while engine.core.has_work:
        engine.step()
        assert engine.scheduler.num_running <= 4
    assert len(engine.of(RequestDone)) == 9


def test_seats_are_kept_for_a_request_of_many_images() -> None:
    """Single images of other sizes would take each seat as it gets free."""
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


def test_more_images_than_seats_run_alone() -> None:
    engine = Engine(max_running=2)
    engine.add(request("many", images=5), request("one", SIZES[1], submitted=1.0))
    engine.run()
    assert engine.ids(RequestDone) == ["many", "one"]


# Encoding and decoding.


def test_encoding_and_decoding_hold_a_running_step_up_by_one_steps_time_at_most() -> None:
    engine = Engine()
    engine.add(request("running", steps=60))
    engine.until(lambda: engine.runner.steps)
    long = 100 * step()  # in a prompt
    engine.add(
        request("prompt", SIZES[4], prompt_tokens=round(long * 1000)), request("same", prompt_tokens=300)
    )
    gaps = list(gaps_between_steps(engine, "running"))
    # The unit is indivisible below a part: a millisecond here.
    assert max(gaps) <= 4 * quantum_of(engine) + 0.002
    assert "prompt" not in engine.ids(RequestDone)


def step() -> float:
    return COST.step_seconds(16, [10], 1)


def quantum_of(engine: Engine) -> float:
    return max(message.expected_seconds for message in engine.of(UnitStarted))


def gaps_between_steps(engine: Engine, request_id: str) -> Iterator[float]:
    """Seconds between the end of one of its steps and the start of the next."""
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
    assert max(gaps) <= large_step() + 0.002
    assert "short" in engine.ids(RequestDone)


# Aborts.


@pytest.mark.parametrize("units", range(0, 60, 3))
def test_an_aborted_request_costs_nothing_more_whatever_its_stage(units: int) -> None:
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


def test_an_aborted_requests_seats_are_given_to_the_next() -> None:
    engine = Engine(max_running=2)
    engine.add(request("first", images=2), request("next", submitted=1.0))
    engine.until(lambda: engine.runner.steps)
    engine.core.abort("first")
    engine.run()
    assert engine.ids(RequestDone) == ["next"]
    assert joined(engine.runner.steps, "first") == [["first", "first"]]


def test_a_request_that_is_not_known_may_be_aborted() -> None:
    engine = Engine()
    engine.core.abort("nobody")
    assert not engine.core.has_work
    assert not engine.step()


# What the worker died on.


def test_suspects_run_alone_and_the_others_together() -> None:
    engine = Engine()
    engine.add(
        *(request(f"suspect-{i}", is_suspect=True) for i in range(2)), *(request(str(i)) for i in range(3))
    )
    engine.run()
    for name in ("suspect-0", "suspect-1"):
        assert joined(engine.runner.steps, name) == [[name]] * 4
    assert ["0", "1", "2"] in engine.runner.steps
    assert not engine.of(RequestFailed)


# Promotion.


@pytest.mark.parametrize("units", [0, 1, 2, 6])
def test_a_promoted_request_profits_at_once_whatever_its_stage(units: int) -> None:
    engine = Engine(max_batch_size=1)
    engine.add(request("promoted", steps=3, priority="batch"))
    for _ in range(units):
        engine.step()
    engine.add(*(request(f"other-{i}", steps=20) for i in range(4)))
    engine.core.promote("promoted", "interactive")
    engine.run()
    assert engine.ids(RequestDone)[0] == "promoted"


def test_a_request_that_is_not_known_may_be_promoted() -> None:
    engine = Engine()
    engine.core.promote("nobody", "interactive")
    assert not engine.core.has_work
