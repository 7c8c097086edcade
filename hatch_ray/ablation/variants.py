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
    """One recipe to train. overrides: as on the command line; paper: a paper's figures by column, percent."""

    name: Annotated[str, Field(pattern=r"^\w[\w-]*$")]
    title: str
    overrides: tuple[str, ...] = ()
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


class Comparison(Section):
    """Variants beside each other; the others are compared with the first."""

    title: str
    variants: Annotated[tuple[str, ...], Field(min_length=1)]
    note: str = ""


class Variants(Section):
    """A file of variants. curves: whose rewards are drawn step by step while GRPO trains."""

    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    tables: tuple[Comparison, ...] = ()
    curves: Comparison | None = None

    @model_validator(mode="after")
    def _check(self) -> Variants:
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError("two variants have one name")
        for table in (*self.tables, *([self.curves] if self.curves else [])):
            for name in table.variants:
                if name not in names:
                    raise ValueError(f"{table.title}: there is no variant {name!r}; they are {', '.join(names)}")
        return self

    def only(self, names: list[str]) -> Variants:
        """The first variant and those named (all, where none is), in tables that have something to compare.

        Variants of no table come in a last one, beside the first variant. Raises ConfigError for an unknown name.
        """
        known = [variant.name for variant in self.variants]
        for name in names:
            if name not in known:
                raise ConfigError(f"there is no variant {name!r}; the variants are {', '.join(known)}")
        kept = [name for name in known if not names or name in names or name == known[0]]
        tables = [
            table.model_copy(update={"variants": tuple(name for name in table.variants if name in kept)})
            for table in self.tables
            if table.variants[0] in kept
        ]
        tables = [table for table in tables if len(table.variants) > 1]
        shown = {known[0], *(name for table in tables for name in table.variants)}
        if rest := [name for name in kept if name not in shown]:
            tables.append(Comparison(title="Other variants", variants=(known[0], *rest)))
        curves = self.curves if self.curves and set(self.curves.variants) <= set(kept) else None
        variants = tuple(variant for variant in self.variants if variant.name in kept)
        return Variants(variants=variants, tables=tuple(tables), curves=curves)


def read_variants(path: Path) -> Variants:
    """The variants of a file. Raises ConfigError naming the first mistake."""
    try:
        return Variants.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not a file of variants: {' '.join(str(error).split())}") from None
