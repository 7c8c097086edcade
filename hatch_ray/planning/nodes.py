"""Nodes of a plan: how many of each kind, what they hold, what they cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from hatch_ray.config import Config, ConfigError

PRICES = Path(__file__).parent / "prices.yaml"
ROLES = ("learner", "rollout", "reward")
DEFAULTS = {"learner": "p5.4xlarge", "rollout": "p5.4xlarge", "reward": "c7i.2xlarge", "head": "m7i.2xlarge"}
"""The kinds of cluster.yaml."""


@dataclass(frozen=True)
class Kind:
    """A kind of machine: what one has and costs."""

    name: str
    cpus: int
    gpus: int
    network_gbit: float
    usd_hour: float

    @property
    def bytes_per_second(self) -> float:
        return self.network_gbit * 1e9 / 8


@dataclass(frozen=True)
class Nodes:
    """A role's machines and the processes on each."""

    kind: Kind
    count: int
    each: int
    shared: bool = False
    """The machines are the learner's, counted there: engines take turns with it (colocated)."""

    @property
    def processes(self) -> int:
        return self.count * self.each


def read_prices(path: Path = PRICES) -> tuple[dict[str, Kind], str]:
    """Kinds of machines by name, and where the prices come from. Raises ConfigError naming a line that is wrong."""
    try:
        tree: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        kinds = {name: Kind(name, **values) for name, values in tree["kinds"].items()}
        for name, kind in kinds.items():
            if min(kind.cpus, kind.network_gbit) <= 0 or min(kind.gpus, kind.usd_hour) < 0:
                raise ConfigError(f"{path}: {name} needs cpus and network_gbit above 0, gpus and usd_hour not below")
        return kinds, f"{tree['source']}, {tree['date']}"
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a table of prices like {PRICES}: {error}") from None


def parse_nodes(text: str, config: Config, kinds: dict[str, Kind]) -> dict[str, Nodes]:
    """ "learner=2,rollout=6:p5.48xlarge,reward=1" -> the nodes of every role, with as many processes as have room.

    A role that is not named has what its processes in the config need; colocated engines are on the learner's nodes.
    Raises ConfigError for anything else.
    """
    asked: dict[str, tuple[int, str]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(rf"({'|'.join(ROLES)})=([1-9]\d*)(?::(.+))?", part)
        if not found:
            raise ConfigError(
                f"--nodes {part!r} is not ROLE=COUNT or ROLE=COUNT:KIND with a role of {', '.join(ROLES)}"
            )
        role, number, named = found.groups()
        if config.colocated and role == "rollout":
            raise ConfigError(f"--nodes {part!r}: colocated engines are on the learner's nodes; leave rollout out")
        asked[role] = (int(number), named or DEFAULTS[role])
    nodes: dict[str, Nodes] = {}
    for role in ROLES:
        if config.colocated and role == "rollout":
            nodes[role] = replace(nodes["learner"], shared=True)
            continue
        wanted, cpus, gpus = _processes(config, role)
        count, name = asked.get(role, (0, DEFAULTS[role]))
        if name not in kinds:
            raise ConfigError(
                f"no price for nodes of kind {name!r}; known: {', '.join(kinds)} (--prices FILE for others)"
            )
        kind = kinds[name]
        room = math.floor(kind.cpus / cpus + 1e-9)
        if gpus:
            # A process never has shares of two GPUs.
            room = min(room, math.floor(kind.gpus / gpus + 1e-9) if gpus >= 1 else kind.gpus * math.floor(1 / gpus))
        if room < 1:
            raise ConfigError(f"a {name} has no room for a process of {role} ({cpus:g} CPUs, {gpus:g} GPUs)")
        if not count:
            count = math.ceil(wanted / room)
            room = min(room, wanted)
        nodes[role] = Nodes(kind, count, room)
    return nodes


def _processes(config: Config, role: str) -> tuple[int, float, float]:
    """(processes, CPUs each, GPUs each) of a role in a config."""
    if role == "learner":
        beside = config.rollout.cpus if config.colocated else 0.0
        return config.learner.workers, max(config.learner.cpus, beside), config.learner.gpus
    if role == "rollout":
        return config.rollout.actors, config.rollout.cpus, config.rollout.gpus
    return config.reward_actors.actors, config.reward_actors.cpus, 0.0
