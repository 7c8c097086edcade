"""View pairs and their matches on disk, part by part: POOLS/train-00003-002.parquet is 50 pairs of a scene.

POOLS/pools.json      what they were made of: data, seed, size of the pictures, pairs a scene
POOLS/summary.json    counts, refused pairs by reason, scenes that were left out
A part's metadata counts the pairs that it refused: a making that was stopped goes on with the parts that are missing.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.pairs import Refused
from hatch_ray.data.refusals import Refusal
from hatch_ray.data.scene import Scene
from hatch_ray.data.store import SPLITS, Split
from hatch_ray.systems.matching.ground import ground_of
from hatch_ray.systems.matching.pools import Thinned, thinned
from hatch_ray.systems.matching.sized import SceneRefused, check_size, views_of

FORMAT = 1
PART = 50
"""Pairs that one task matches, of which it writes a file."""
MOST_OTHERS = 250
"""Matches that are kept beside the spread ones: questions with dense marks draw from all."""
SHARES = ("omega", "omega_back", "omega_valid", "omega_valid_back")
SCHEMA = pa.schema(
    [("scene", pa.string()), ("first", pa.int32()), ("second", pa.int32()), ("frames", pa.list_(pa.string()))]
    + [(name, pa.float32()) for name in SHARES]
    + [("spread", pa.int32()), ("matches", pa.list_(pa.float32()))]
)
"""first, second: indices of the scene's views. frames: their names. omega: share of all pixels (of landmarks) of the
first view that the second sees, and back; omega_valid: of those with depth. matches: x1 y1 x2 y2 each, pixels of
pictures of at most max_pixels; the first `spread` of them are the pool of 10 to 50."""


@dataclass(frozen=True)
class Making:
    """What pools are made of. pairs: of views, at most, of each scene; drawn by the seed."""

    data: DataConfig
    seed: int
    max_pixels: int
    pairs: int = 0

    def row(self) -> dict[str, Any]:
        """What must be the same where they are used."""
        sizes = {"samples", "heldout_samples", "min_overlap", "max_overlap", "tasks", "formats", "max_views"}
        data = self.data.model_dump(mode="json", exclude=sizes)
        root = self.data.root and str(self.data.root.expanduser().resolve())
        return {"format": FORMAT, "seed": self.seed, "max_pixels": self.max_pixels, "data": data | {"root": root}}


@dataclass(frozen=True)
class Stored:
    """A view pair as it was stored."""

    first: int
    second: int
    thinned: Thinned

    def turned(self) -> Stored:
        """The same with the second view first."""
        thin = self.thinned
        turned = Thinned(thin.matches[:, [2, 3, 0, 1]], thin.spread, thin.omega[::-1], thin.omega_valid[::-1])
        return Stored(self.second, self.first, turned)


@dataclass(frozen=True)
class Part:
    """One file. position: the scene's place in its split."""

    split: Split
    position: int
    number: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.position:05d}-{self.number:03d}.parquet"


def parts_of(making: Making) -> list[Part]:
    """All parts, in order. Raises ValueError for data that has no scenes."""
    per_scene = -(-making.pairs // PART)
    return [
        Part(split, position, number)
        for split in SPLITS
        for position in range(len(views_of(making.data, making.seed, split, making.max_pixels)[0]))
        for number in range(per_scene)
    ]


def pairs_of(count: int, making: Making, part: Part) -> list[tuple[int, int]]:
    """The view pairs of a part, of a scene of `count` views; each pair once."""
    order = list(combinations(range(count), 2))
    rng = np.random.default_rng([making.seed, SPLITS.index(part.split), part.position])
    chosen = rng.permutation(len(order))[: making.pairs]
    return [order[k] for k in islice(chosen, part.number * PART, (part.number + 1) * PART)]


def write_part(scene: Scene, making: Making, part: Part) -> bytes:
    """A part as the bytes of its file. Raises ValueError for pictures that are too large."""
    rows: list[dict[str, Any]] = []
    refused: Counter[str] = Counter()
    for i, j in pairs_of(len(scene), making, part):
        try:
            rows.append(_row(scene, i, j, making))
        except (Refused, Refusal) as refusal:
            refused[refusal.reason.replace(" ", "_")] += 1
    return _bytes(rows, {"refused": dict(refused), "left_out": ""})


def refused_part(error: SceneRefused) -> bytes:
    """The part of a scene that cannot be read."""
    return _bytes([], {"refused": {}, "left_out": str(error)})


def _row(scene: Scene, i: int, j: int, making: Making) -> dict[str, Any]:
    ground = ground_of(scene, i, j)
    check_size(ground.first, making.max_pixels)
    pool = ground.pool()
    if not len(pool.matches):
        raise Refused("no_overlap")
    thin = thinned(pool, ground.first, ground.second)
    if not len(thin.spread):
        raise Refused("too_few_matches")
    others = np.setdiff1d(np.arange(len(thin.matches)), thin.spread)
    rng = np.random.default_rng([making.seed, i, j])
    kept = np.concatenate([thin.spread, np.sort(rng.permutation(others)[:MOST_OTHERS])])
    shares = (*thin.omega, *thin.omega_valid)
    return {
        "scene": scene.id, "first": i, "second": j, "frames": [ground.first.name, ground.second.name],
        "spread": len(thin.spread), "matches": thin.matches[kept].astype(np.float32).ravel(),
    } | dict(zip(SHARES, shares, strict=True))  # fmt: skip


def _bytes(rows: list[dict[str, Any]], counted: dict[str, Any]) -> bytes:
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({"counted": json.dumps(counted)}))
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def counted(files: Iterable[Path]) -> dict[str, Any]:
    """What parts hold and refused, all together."""
    pairs, refused, left_out = Counter[str](), Counter[str](), dict[str, None]()
    for file in files:
        found = pq.read_metadata(file)
        told = json.loads(found.metadata[b"counted"])
        pairs[file.name.partition("-")[0]] += found.num_rows
        refused.update(told["refused"])
        left_out |= dict.fromkeys([told["left_out"]] if told["left_out"] else [])
    return {"pairs": dict(pairs), "refused": dict(refused.most_common()), "scenes_left_out": list(left_out)}


class StoredPools:
    """The pools of a folder. Raises ValueError when it has none or not all, or when they are not of `making`."""

    def __init__(self, folder: Path, making: Making) -> None:
        self.folder = folder
        made = folder / "pools.json"
        if not made.is_file() or not (folder / "summary.json").is_file():
            raise ValueError(f"pools={folder} is no whole folder of pools; make it with `hatch data pool`")
        stored = json.loads(made.read_text(encoding="utf-8"))
        for key, value in making.row().items():
            if stored[key] != value:
                raise ValueError(
                    f"pools={folder} were made with another {_differing(key, stored[key], value)}; make them anew from "
                    "this config (`hatch data pool`)"
                )

    def of(self, split: Split, position: int) -> Sequence[Stored]:
        """The pairs of a scene, by its place in the split."""
        found: list[Stored] = []
        for file in sorted(self.folder.glob(f"{split}-{position:05d}-*.parquet")):
            found += map(_stored, pq.read_table(file).to_pylist())
        return found


def _differing(key: str, stored: Any, wanted: Any) -> str:
    if not isinstance(wanted, dict):
        return f"{key} ({stored}, not {wanted})"
    name = next(name for name in wanted if stored.get(name) != wanted[name])
    return f"{key}.{_differing(name, stored.get(name), wanted[name])}"


def _stored(row: dict[str, Any]) -> Stored:
    shares = [row[name] for name in SHARES]
    matches = np.array(row["matches"], dtype=float).reshape(-1, 4)
    thin = Thinned(matches, np.arange(row["spread"]), (shares[0], shares[1]), (shares[2], shares[3]))
    return Stored(row["first"], row["second"], thin)
