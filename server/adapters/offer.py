"""The adapters that one API key may use."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from server.adapters.adapter import Adapter
from server.adapters.hub_folders import RETRY_SECONDS as DOWNLOAD_SECONDS
from server.schemas.errors import ApiError

MAX_LISTED = 50  # in an error message
RETRY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Offer:
    """Those of `adapters`, by name, that the API key named `key` may use; also those that cannot be used."""

    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    key: str = ""

    def __iter__(self) -> Iterator[Adapter]:
        return (adapter for adapter in self.adapters.values() if adapter.is_offered_to(self.key))

    def __contains__(self, name: str) -> bool:
        return name in self.adapters and self.adapters[name].is_offered_to(self.key)

    @property
    def names(self) -> list[str]:
        """Of those that can be used."""
        return [adapter.name for adapter in self if adapter.status == "ready"]

    def find(self, name: str, param: str) -> Adapter:
        """One that can be used; `param` is the field that names it. Raises ApiError 404 or 503."""
        if name not in self:
            message = f"Unknown adapter. This key may use: {listed(self.names) or 'none'}."
            raise ApiError(404, "adapter_not_found", message, param=param)
        adapter = self.adapters[name]
        if adapter.status == "broken":
            message = f"The adapter `{name}` cannot be used: {adapter.error}."
            raise ApiError(404, "adapter_not_found", message, param=param)
        if adapter.status == "loading":
            raise _not_ready(adapter, param)
        return adapter


def _not_ready(adapter: Adapter, param: str) -> ApiError:
    message, seconds = f"The file of the adapter `{adapter.name}` is not read yet.", RETRY_SECONDS
    if adapter.error is not None:
        message, seconds = (
            f"The adapter `{adapter.name}` is not downloaded yet: {adapter.error}.",
            DOWNLOAD_SECONDS,
        )
    return ApiError(503, "adapter_not_ready", message, param=param, retry_after=seconds)


def listed(names: Sequence[str]) -> str:
    """For an error message, which lists at most 50 of them."""
    shown = ", ".join(f"`{name}`" for name in names[:MAX_LISTED])
    more = len(names) - MAX_LISTED
    return f"{shown} and {more} more" if more > 0 else shown
