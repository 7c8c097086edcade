"""Variants of a recipe, as a file says them (configs/ablations/): changes of one config, and what is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, ValidationError, model_validator

from hatch_ray.config import Config, ConfigError, make_config, parse_override, set_dotted
from hatch_ray.config_sections import Section

SHARED = ("data", "run_dir", "seed")
"""What the variants of one ablation have in common, or what the ablation sets itself."""


class Variant(Section):
    """One recipe to train.

    overrides  as on the command line.      against  the variant it is compared with; "" is the first.
    table      where it is shown.           paper    a paper's figures by column, percent.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w-]*$")]
    title: str
    overrides: tuple[str, ...] = ()
    against: str = ""
    table: str = "Variants"
    paper: dict[str, float] = {}  # noqa: RUF012 - pydantic copies it

    def config(self, base: Config, folder: Path, seed: int, data: Path) -> Config:
        """The variant's config: its run lies in folder/seed<seed>/<name>, its datasets are those in `data`.

        Raises ConfigError for overrides that the config doesn't take, or that change what all variants share.
        """
        tree = base.model_dump(mode="json")
        for key, value in map(parse_override, self.overrides):
            if key.split(".")[0] in SHARED:
                raise ConfigError(f"variant {self.name}: {key} is one for all variants; set it on the command line")
            set_dotted(tree, key, value)
        set_dotted(tree, "data.root", str(data))
        tree |= {"run_dir": str(folder / f"seed{seed}" / self.name), "seed": seed}
        return make_config(tree, where=f"variant {self.name}")


class Variants(Section):
    """A file of variants. curves: whose rewards are drawn; notes: what stands below a table's title, or "curves"."""

    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    curves: tuple[str, ...] = ()
    notes: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it

    @model_validator(mode="after")
    def _check(self) -> Variants:
        known: list[str] = []
        tables: dict[str, str] = {}
        for variant in self.variants:
            if variant.name in known:
                raise ValueError(f"two variants are named {variant.name}")
            if variant.against and variant.against not in known:
                raise ValueError(f"{variant.name} is compared with {variant.against!r}, which is no variant before it")
            if known and tables.setdefault(variant.table, self.against(variant)) != self.against(variant):
                raise ValueError(f"the variants of {variant.table!r} are compared with more than one")
            known.append(variant.name)
        if unknown := set(self.curves) - set(known):
            raise ValueError(f"curves: {', '.join(sorted(unknown))} is no variant")
        return self

    def against(self, variant: Variant) -> str:
        """The name of the variant that this one is compared with; the first's is its own."""
        return variant.against or self.variants[0].name

    def only(self, names: list[str]) -> Variants:
        """The first variant, those named (all, where none is), and what they are compared with.

        Raises ConfigError for an unknown name.
        """
        known = [variant.name for variant in self.variants]
        for name in names:
            if name not in known:
                raise ConfigError(f"there is no variant {name!r}; the variants are {', '.join(known)}")
        wanted = {known[0], *(names or known)}
        for variant in reversed(self.variants):
            if variant.name in wanted:
                wanted.add(self.against(variant))
        variants = tuple(variant for variant in self.variants if variant.name in wanted)
        curves = self.curves if wanted.issuperset(self.curves) else ()
        return self.model_copy(update={"variants": variants, "curves": curves})


def read_variants(path: Path) -> Variants:
    """The variants of a file. Raises ConfigError naming the first mistake."""
    try:
        return Variants.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place, mistake = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {place}{': ' if place else ''}{mistake}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a file of variants: {' '.join(str(error).split())}") from None
