"""Alphas in the metadata of adapters that PEFT or diffusers wrote. Torch-free."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from engine.adapters.adapter_header import Header
from engine.adapters.adapter_keys import Part

KEY = "lora_adapter_metadata"
_PREFIXES: Mapping[str, Part] = {
    "transformer.": "conditional",
    "unconditional_transformer.": "unconditional",
}
_Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _LoraConfig(BaseModel):
    """The settings of PEFT's LoraConfig that scale an update."""

    lora_alpha: _Alpha | None = None
    alpha_pattern: dict[str, _Alpha] = Field(default_factory=dict)
    use_rslora: bool = False


@dataclass(frozen=True, slots=True)
class DeclaredAlphas:
    """The declared settings of each transformer."""

    configs: Mapping[Part, _LoraConfig] = field(default_factory=dict)

    @classmethod
    def read(cls, header: Header) -> "DeclaredAlphas":
        """Raises AdapterError if the metadata is malformed."""
        if KEY not in header.metadata:
            return cls()
        try:
            stored = TypeAdapter(dict[str, Any]).validate_json(header.metadata[KEY])
            return cls({part: _config(stored, prefix) for prefix, part in _PREFIXES.items()})
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(map(str, ("__metadata__", KEY, *problem["loc"])))
            raise header.error(place, problem["msg"]) from error

    def scale(self, part: Part, module: str, rank: int) -> float:
        """What multiplies the update of a module: alpha / rank; 1 if no alpha is declared."""
        config = self.configs.get(part, _LoraConfig())
        patterns = config.alpha_pattern.items()
        alpha = next((alpha for name, alpha in patterns if _matches(name, module)), config.lora_alpha)
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(max(1, rank)) if config.use_rslora else max(1, rank))


def _config(stored: Mapping[str, Any], prefix: str) -> _LoraConfig:
    return _LoraConfig(**{key.removeprefix(prefix): v for key, v in stored.items() if key.startswith(prefix)})


def _matches(name: str, module: str) -> bool:
    """As PEFT does: the pattern names the module, or its last parts. It may begin with `^`."""
    plain = re.escape(name.removeprefix("^"))
    return re.fullmatch(plain if name.startswith("^") else rf"(.*\.)?{plain}", module) is not None
