"""The model: seconds, bytes and money of a GRPO step on given nodes.

In synchronous mode engines, reward actors and learner take turns, and the driver prepares the next step's images while
the learner is at work:

    step = sync + generate + reward + control + max(learn, prepare)

With max_staleness the learner works beside all that, so that the slower side sets the pace:

    step = max(sync + generate + reward + control + prepare, learn)

Each phase lasts as long as its process with the largest share (`costs.Line`). The network adds, between nodes: the new
weights once to every rollout node, all from one node (`sync`); the gradient's ring all-reduce (`learn`); the images
from the head (`prepare`). docs/scaling.md has what is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from hatch_ray.config import Config
from hatch_ray.planning.costs import Costs, Sizes
from hatch_ray.planning.nodes import Kind, Nodes

BYTES = {"float32": 4, "bfloat16": 2}
PIXEL_BYTES = 3 + 24
"""Of a pixel in the object store: itself for the engine, and as the learner's patches (3 colours, twice, fp32)."""
TOKEN_BYTES = 8
"""Of a reply token: its id and its log-probability."""
STEPS_IN_STORE = 2
HEAD_STORE_BYTES = 8 * 2**30
"""The head's object store in cluster.yaml."""
TURNS = ("sync", "generate", "reward", "control", "learn", "prepare")


def group_bytes(config: Config) -> int:
    """Bytes of a prompt's images in the object store, at most."""
    return config.model.max_images * config.model.max_pixels * PIXEL_BYTES


@dataclass(frozen=True)
class Work:
    """What a step moves beside its sizes."""

    sizes: Sizes
    weight_bytes: int
    image_bytes: int
    """Of a group."""

    @classmethod
    def of(cls, config: Config, parameters: int) -> Work:
        """At most: every prompt with model.max_images images of model.max_pixels."""
        return cls(Sizes.of(config), parameters * BYTES[config.rollout.dtype], group_bytes(config))


@dataclass(frozen=True)
class Plan:
    """What a step would be."""

    sizes: Sizes
    phases: dict[str, float]
    """Seconds of each of TURNS, the network's part included."""
    network: dict[str, float]
    """The network's part of sync, learn and prepare, seconds."""
    seconds: float
    moved: dict[str, float]
    """Bytes of a step between nodes: weights, gradients, images, replies."""
    store_bytes: float
    """What the head's object store holds at once."""
    usd_hour: float
    reply_tokens: float

    @property
    def slowest(self) -> str:
        """The phase that most of a step goes to; with max_staleness, of the side that sets the pace."""
        names: tuple[str, ...] = TURNS
        if self.sizes.max_staleness:
            learner_leads = self.phases["learn"] >= self.seconds * (1 - 1e-9)
            names = ("learn",) if learner_leads else tuple(name for name in TURNS if name != "learn")
        return max(names, key=lambda name: self.phases[name])

    @property
    def tokens_per_second(self) -> float:
        """Reply tokens that are trained on."""
        return self.sizes.groups * self.sizes.group_size * self.reply_tokens / self.seconds


def predict(costs: Costs, work: Work, nodes: Mapping[str, Nodes] | None = None, head: Kind | None = None) -> Plan:
    """What a step of `work` would be on `nodes` with the driver on `head`; without nodes, on one machine as measured.

    The processes are those of work.sizes. Raises ValueError for sizes below 1.
    """
    sizes = work.sizes
    if min(sizes.groups, sizes.group_size, sizes.engines, sizes.reward_actors, sizes.workers) < 1:
        raise ValueError(f"impossible sizes: {sizes}")
    groups, replies = sizes.groups, sizes.groups * sizes.group_size
    network = {"sync": 0.0, "learn": 0.0, "prepare": 0.0}
    moved = {"weights": 0.0, "gradients": 0.0, "images": 0.0, "replies": 0.0}
    usd_hour = 0.0
    if nodes is not None and head is not None:
        learner, rollout = nodes["learner"], nodes["rollout"]
        ring = 2 * (learner.count - 1) / learner.count * work.weight_bytes
        moved = {
            # Of colocated engines one node's are where the weights come from.
            "weights": float(work.weight_bytes * (rollout.count - rollout.shared)),
            "gradients": ring * learner.count,
            "images": float(groups * work.image_bytes),
            "replies": replies * costs.reply_tokens * TOKEN_BYTES,
        }
        network = {
            "sync": moved["weights"] / learner.kind.bytes_per_second,
            "learn": ring / learner.kind.bytes_per_second,
            "prepare": moved["images"] / head.bytes_per_second,
        }
        usd_hour = head.usd_hour + sum(one.count * one.kind.usd_hour for one in nodes.values() if not one.shared)
    engines, workers = sizes.at_work(sizes.engines), sizes.at_work(sizes.workers)
    overlap = nodes is None and sizes.max_staleness > 0  # learner and engines at once, on one machine
    rollout_beside = costs.generate_beside if overlap or _share_a_machine(nodes, "rollout", engines) else 1.0
    learner_beside = costs.learn_beside if overlap or _share_a_machine(nodes, "learner", workers) else 1.0
    phases = {
        "sync": costs.sync + network["sync"],
        "generate": costs.generate.seconds(*sizes.share(sizes.engines)) * rollout_beside,
        "reward": costs.reward.seconds(*sizes.rewarded()),
        "control": costs.control.seconds(groups, replies),
        "learn": costs.learn.seconds(*sizes.share(sizes.workers)) * learner_beside + network["learn"],
        # Images are sent while others are prepared.
        "prepare": max(costs.prepare * groups, network["prepare"]),
    }
    before = phases["sync"] + phases["generate"] + phases["reward"] + phases["control"]
    if sizes.max_staleness:
        seconds = max(before + phases["prepare"], phases["learn"])
    else:
        seconds = before + max(phases["learn"], phases["prepare"])
    return Plan(
        sizes=sizes,
        phases=phases,
        network=network,
        seconds=max(seconds, 1e-9),
        moved=moved,
        store_bytes=float(STEPS_IN_STORE * groups * work.image_bytes),
        usd_hour=usd_hour,
        reply_tokens=costs.reply_tokens,
    )


def _share_a_machine(nodes: Mapping[str, Nodes] | None, role: str, at_work: int) -> bool:
    """Whether several of a role's processes compute on the CPUs of one machine. With GPUs each has its own."""
    if nodes is None:
        return at_work > 1
    return nodes[role].each > 1 and not nodes[role].kind.gpus and at_work > nodes[role].count


def grown(nodes: Mapping[str, Nodes], most_gpus: int) -> Iterator[dict[str, Nodes]]:
    """The nodes, doubled again and again until they would have more than `most_gpus` GPUs (processes without GPUs)."""
    factor = 1
    while factor == 1 or factor * gpus_of(nodes) <= most_gpus:
        yield {role: replace(one, count=one.count * factor) for role, one in nodes.items()}
        factor *= 2


def gpus_of(nodes: Mapping[str, Nodes]) -> int:
    """GPUs of learner and rollout nodes; their processes where the machines have none."""
    own = [nodes[role] for role in ("learner", "rollout") if not nodes[role].shared]
    return sum(one.count * (one.kind.gpus or one.each) for one in own)


def on_nodes(costs: Costs, work: Work, nodes: Mapping[str, Nodes], head: Kind, factor: int = 1) -> Plan:
    """`predict` with as many processes as the nodes have, and a batch `factor` times as large, grown to the next
    multiple of the learner workers.
    """
    engines, reward_actors, workers = (nodes[role].processes for role in ("rollout", "reward", "learner"))
    groups = -(-work.sizes.groups * factor // workers) * workers
    sizes = replace(work.sizes, groups=groups, engines=engines, reward_actors=reward_actors, workers=workers)
    return predict(costs, replace(work, sizes=sizes), nodes, head)
