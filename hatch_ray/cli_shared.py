"""What all commands of `hatch` share: where they print, and how they are given a config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from hatch_ray.config import Config

console = Console(highlight=False, soft_wrap=True)

ConfigFile = Annotated[Path, typer.Argument(help="YAML config, for example configs/tiny.yaml", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="changes to the config, for example grpo.beta=0.02", metavar="[KEY=VALUE]...")
]
CONFIGS = Path(__file__).parent / "configs"
"""The configs of the repository, which a wheel has too."""


def load(config: Path, overrides: list[str] | None) -> Config:
    """The config of a file, with changes. Raises ValueError."""
    from hatch_ray.config import load_config

    if not config.is_file():
        raise ValueError(f"config file {config} does not exist; those of hatch-ray are in {CONFIGS}")
    return load_config(config, overrides)


def names(words: str) -> list[str]:
    """ "a, b" -> ["a", "b"], each once."""
    return list(dict.fromkeys(name.strip() for name in words.split(",") if name.strip()))
