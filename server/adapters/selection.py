"""The adapters that a request applies."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from engine.request import AdapterUse, SamplingParams
from server.adapters.adapter import Adapter
from server.adapters.offer import Offer
from server.schemas.errors import invalid
from server.schemas.images import MAX_ADAPTERS, AdapterChoice


@dataclass(frozen=True, slots=True)
class Selection:
    """Adapters that can be used, each with what the request says about it."""

    chosen: tuple[tuple[Adapter, AdapterChoice], ...]

    @classmethod
    def of(cls, choices: Sequence[AdapterChoice], named: str | None, offer: Offer) -> "Selection":
        """`named` is the adapter in the model id; it may also be in `choices`. Raises ApiError 400, 404 or
        503."""
        names = [choice.name for choice in choices]
        doubled = [name for name, number in Counter(names).items() if number > 1]
        if doubled:
            raise invalid(f"`adapters` has `{doubled[0]}` twice.", "adapters")
        is_more = named is not None and named not in names
        if len(names) + is_more > MAX_ADAPTERS:
            raise invalid(f"At most {MAX_ADAPTERS} adapters, with that of `model`.", "adapters")
        chosen = [(offer.find(choice.name, "adapters"), choice) for choice in choices]
        if named is not None and is_more:
            chosen.insert(0, (offer.find(named, "model"), AdapterChoice(name=named, scale=None, steps=None)))
        return cls(tuple(chosen))

    @property
    def preset(self) -> tuple[str, SamplingParams] | None:
        """The preset that the adapters bring, by the name of its adapter. Raises ApiError 400 if they bring
        several."""
        brought = {adapter.name: adapter.preset for adapter, _ in self.chosen if adapter.preset}
        if len(set(brought.values())) > 1:
            names = " and ".join(f"`{name}`" for name in brought)
            raise invalid(f"{names} bring different presets; set `preset`.", "adapters")
        return next(iter(brought.items()), None)

    def uses(self, steps: int) -> tuple[AdapterUse, ...]:
        """For a request with so many steps. Raises ApiError 400."""
        return tuple(_use(adapter, choice, steps) for adapter, choice in self.chosen)


def _use(adapter: Adapter, choice: AdapterChoice, steps: int) -> AdapterUse:
    assert adapter.weights is not None, "an offer finds only adapters that can be used"
    first, end = choice.steps or (0, steps)
    if not first < end <= steps:
        rule = f"[first, end] with first < end <= {steps}, the number of steps"
        raise invalid(f"`steps` of the adapter `{adapter.name}` must be {rule}.", "adapters")
    return AdapterUse(
        name=adapter.name,
        path=str(adapter.weights.path),
        digest=adapter.weights.digest,
        scale=adapter.settings.scale if choice.scale is None else choice.scale,
        first_step=first,
        end_step=end,
    )
