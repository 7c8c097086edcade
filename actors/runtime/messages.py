"""What the actors hand to one another. Plain frozen records: numbers, text and object references, never pixels."""

from __future__ import annotations

from dataclasses import dataclass

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

    rewards: (G,) float64, the total of each reply; advantages: (G,) float32.
    """

    request: Request
    rollout: Rollout
    rewards: np.ndarray
    advantages: np.ndarray
    zero_variance: bool

    @property
    def tokens(self) -> int:
        """Reply tokens of the group."""
        return sum(len(reply.token_ids) for reply in self.rollout.replies)


@dataclass(frozen=True)
class Shard:
    """One learner worker's part of a step: its groups; of the whole step, reply tokens, replies and the mean reward."""

    step: int
    groups: tuple[Group, ...]
    global_tokens: int
    global_replies: int
    reward: float


LIKELIEST = 16
"""Tokens of a probe; vLLM gives at most 20 by default, and the vision tokens come on top."""


@dataclass(frozen=True)
class Probe:
    """What learner and engines are both asked: how likely are certain tokens right after this prompt?

    `blank` is the same prompt with grey images of the same sizes: only pixels tell the two apart.
    """

    request: Request
    blank: Request


@dataclass(frozen=True)
class ProbeScores:
    """The learner's answer to a probe with the weights of `version`.

    prompt_ids: the prompt, images widened; tokens: K ids, the LIKELIEST first, the vision tokens (never sampled) last;
    logprobs, blank_logprobs: (K,) float32 under `temperature` and ban, `blank_logprobs` None where only the prompt
    itself was asked; banned: all ids that may never be sampled; bound: largest mean difference (nats) of an engine.
    """

    probe: Probe
    version: int
    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: np.ndarray
    blank_logprobs: np.ndarray | None
    banned: tuple[int, ...]
    temperature: float
    bound: float


@dataclass(frozen=True)
class ProbeAnswer:
    """An engine's answer to one prompt of a probe: logprobs (K,) float32 of `ProbeScores.tokens`.

    cached: tokens of the prompt that came from the prefix cache.
    """

    prompt_ids: tuple[int, ...]
    logprobs: np.ndarray
    cached: int


@dataclass(frozen=True)
class GateAnswer:
    """An engine's answers to both prompts of a probe, and the ids that it never samples."""

    version: int
    real: ProbeAnswer
    blank: ProbeAnswer
    banned: tuple[int, ...]


@dataclass(frozen=True)
class SyncAnswer:
    """What an engine says after a weight update.

    before, after: the probe's prompt with the old and the new weights; None when none was sent along. head: whether
    `lm_head.weight` was among the weights if the token embeddings were.
    """

    version: int
    checksum: str
    head: bool
    before: ProbeAnswer | None
    after: ProbeAnswer | None


@dataclass(frozen=True)
class WeightsHandle:
    """Where a version lies: a reference inside a record, so that Ray does not fetch it on the way.

    checksum: of the packed weights; probe: what an engine must answer with them. Both are empty in tests alone.
    """

    version: int
    ref: ray.ObjectRef
    checksum: str = ""
    probe: ProbeScores | None = None
