"""The families of models that can be trained, by transformers' `model_type`. A new one is a file here and a line below.

No torch is imported until a model is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatch_ray.model.families.family import Family
from hatch_ray.model.families.qwen2_5_vl import Qwen25VL
from hatch_ray.model.families.qwen3_vl import Qwen3VL

FAMILIES: dict[str, Family] = {family.kind: family for family in (Qwen25VL(), Qwen3VL())}
PUBLISHED: dict[str, Mapping[str, Any]] = {
    name: config for family in FAMILIES.values() for name, config in family.published.items()
}
"""config.json of the published models, as far as sizes follow from it: known without a download."""

NOT_SHARED = (
    "layers that do not see all that came before (sliding windows): replies cannot share its prompt; set "
    "grpo.shared_prefix=false, and each is computed in a row of its own"
)


def family_of_kind(base: str | Path, kind: str | None) -> Family:
    """The family of a model of this transformers `model_type`. Raises ValueError where none is known."""
    if kind not in FAMILIES:
        known = " or ".join(family.name for family in FAMILIES.values())
        raise ValueError(f"model.base={base} is a {kind!r}; a {known} is needed (docs/your-own-model.md)")
    return FAMILIES[kind]


def family_of(config: Any) -> Family:
    """The family of a loaded model, or of its image encoder, by transformers' config."""
    kind = str(config.model_type)
    return family_of_kind(config.name_or_path or kind, kind.removesuffix("_vision"))
