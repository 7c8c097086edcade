"""What the actors hand to one another. Plain frozen records: numbers, text and object references, never pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray


@dataclass(frozen=True)
class StoredPatches:
    """An image as the encoder takes it, in Ray's object store: float32 (patches, values), and its grid (t, h, w)."""

    ref: ray.ObjectRef
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class StoredImage:
    """An RGB image, (H, W, 3) uint8, in Ray's object store; `hash` names its pixels (`data.images.image_hash`).

    `ref` sits inside the record so that Ray passes the reference on instead of the pixels. `patches`: for a learner.
    """

    hash: str
    ref: ray.ObjectRef
    patches: StoredPatches | None = None


@dataclass(frozen=True)
class Request:
    """One prompt to sample from: chat text with one un-expanded placeholder for each image.

    `id` is for messages to the user (a sample's id); `seed` fixes the sampling of this prompt's replies.
    """

    id: str
    prompt: str
    images: tuple[StoredImage, ...]
    seed: int = 0


@dataclass(frozen=True)
class Sampling:
    """n replies for each prompt; temperature 0 is greedy."""

    n: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 1024


@dataclass(frozen=True)
class Reply:
    """One sampled reply. Its end token, when `ended`, is the last of `token_ids` and not part of `text`.

    logprobs: (tokens,) float32, of the sampled tokens under temperature and ban; all of them enter the loss.
    """

    token_ids: tuple[int, ...]
    text: str
    logprobs: np.ndarray
    ended: bool


@dataclass(frozen=True)
class Rollout:
    """A request's replies, the weights' version they were sampled with, and the prompt's length in tokens."""

    replies: tuple[Reply, ...]
    version: int
    prompt_tokens: int


@dataclass(frozen=True)
class Group:
    """G judged replies to one prompt: what the learner trains on.

    scores: one dictionary a reply (`rewards.score.Score.to_dict` and the parsed plans); advantages: (G,) float32.
    """

    request: Request
    rollout: Rollout
    scores: tuple[dict[str, Any], ...]
    advantages: np.ndarray
    zero_variance: bool

    @property
    def tokens(self) -> int:
        """Reply tokens of the group."""
        return sum(len(reply.token_ids) for reply in self.rollout.replies)


@dataclass(frozen=True)
class Shard:
    """One learner worker's part of a step: its groups; of the whole step, reply tokens, ledger rows, metrics."""

    step: int
    groups: tuple[Group, ...]
    global_tokens: int
    ledger: tuple[dict[str, Any], ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightsHandle:
    """Where a version lies: a reference inside a record, so that Ray does not fetch it on the way."""

    version: int
    ref: ray.ObjectRef
