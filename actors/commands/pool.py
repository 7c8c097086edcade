"""`hatch data pool`: view pairs with their matches, made by Ray tasks, a part of 50 pairs each, written as they come.

The driver holds the parts that are under way, whatever there is in all; a stopped command goes on with those missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from actors.runtime.progress import progress_bar
from actors.stages.recipe import start_ray
from hatch_ray.config import Config
from hatch_ray.config_sections import DataConfig
from hatch_ray.data.scene import Scene
from hatch_ray.data.store import Split
from hatch_ray.run_folder import write_atomic
from hatch_ray.systems.matching.settings import MatchingConfig
from hatch_ray.systems.matching.sized import SceneRefused, views_of
from hatch_ray.systems.matching.stored import Making, Part, counted, parts_of, refused_part, write_part

AHEAD = 2
"""Tasks under way for each CPU."""


def make_pools(config: Config, out: Path, pairs: int, console: Console) -> dict[str, Any]:
    """Write what is missing of the pools at `out`, and their summary, which is returned.

    Raises ValueError: a config of another system, data that has no scenes, a folder with pools of other data.
    """
    if not isinstance(config, MatchingConfig):
        raise ValueError(f"pools are for the system matching, this config is of {config.system}")
    making = Making(config.data, config.seed, config.model.max_pixels, pairs)
    parts = parts_of(making)
    _begin(out, making)
    missing = [part for part in parts if not (out / part.name).is_file()]
    done = len(parts) - len(missing)
    if missing:
        start_ray(config, [])
    with progress_bar(console, "matching views, parts") as bar:
        bar(done, len(parts))
        for part, found in _made(missing, making):
            if isinstance(found, str):
                raise ValueError(found)
            write_atomic(out / part.name, found)
            done += 1
            bar(done, len(parts))
    summary = counted(out / part.name for part in parts)
    write_atomic(out / "summary.json", json.dumps(summary, indent=2))
    return summary


def _begin(out: Path, making: Making) -> None:
    """POOLS/pools.json, or what is there must be the same."""
    wanted, file = making.row() | {"pairs": making.pairs}, out / "pools.json"
    if not file.is_file():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} exists already and has no pools; choose another folder or remove it")
        write_atomic(file, json.dumps(wanted, indent=2))
    elif json.loads(file.read_text(encoding="utf-8")) != wanted:
        raise ValueError(f"{out} has pools of other data or settings ({file.name}); choose another folder or remove it")


def _made(parts: Sequence[Part], making: Making) -> Iterator[tuple[Part, bytes | str]]:
    """Each part as it is made: its file's bytes, or why it cannot be."""
    if not parts:
        return
    make, left = ray.remote(_make), iter(parts)
    most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    words = (making.data.model_dump_json(), making.seed, making.max_pixels, making.pairs)
    running: dict[Any, Part] = {}
    while True:
        while len(running) < most and (part := next(left, None)) is not None:
            running[make.remote(*words, part)] = part
        if not running:
            return
        (first, *_), _ = ray.wait(list(running), num_returns=1)
        yield running.pop(first), ray.get(first)


def _make(data: str, seed: int, max_pixels: int, pairs: int, part: Part) -> bytes | str:
    """A part, as a Ray task."""
    try:
        scene = _scene(data, seed, max_pixels, part.split, part.position)
        return write_part(scene, Making(DataConfig.model_validate_json(data), seed, max_pixels, pairs), part)
    except SceneRefused as refused:
        return refused_part(refused)
    except ValueError as error:
        return str(error)


@lru_cache(maxsize=2)
def _scene(data: str, seed: int, max_pixels: int, split: Split, position: int) -> Scene:
    return _scenes(data, seed, max_pixels, split)[position]()


@lru_cache(maxsize=2)
def _scenes(data: str, seed: int, max_pixels: int, split: Split) -> Any:
    return views_of(DataConfig.model_validate_json(data), seed, split, max_pixels)[0]
