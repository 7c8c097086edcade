"""The learner's answer to a probe of the parity gate (`parity.py`): how likely tokens are right after a prompt."""

from __future__ import annotations

import numpy as np

from actors.runtime.messages import LIKELIEST, Probe, ProbeScores
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import pack
from hatch_ray.model.prompt_tokens import Prompt

MANTISSA = {"bfloat16": 8, "float32": 24}
"""Bits, the leading one included."""
STEPS = 4
FLOOR = 1e-3
"""Nats. In float32 sums in another order and approximated exponentials count, not steps: below 2e-4 on CPUs."""


def logit_step(dtype: str, size: float) -> float:
    """How far two neighbouring numbers of a dtype are apart at `size`: 2^(e - bits + 1) from 2^e to 2^(e + 1).

    In bfloat16 0.0625 at 8 to 16 and 0.125 at 16 to 32; in float32 1.9e-6 there.
    """
    return float(2.0 ** (np.frexp(abs(size))[1] - MANTISSA[dtype])) if size else 0.0


def parity_bound(dtype: str, size: float, temperature: float = 1.0) -> float:
    """Largest mean difference (nats) between learner and vLLM over tokens whose largest logit is `size`.

    Each side rounds its logits to `dtype`, by half a step at most, so the two differ by at most one step in a logit z,
    and by one in log sum exp z, whose derivatives add up to 1: by two in a log-probability z - log sum exp z. What was
    rounded on the way through the layers may cost as much again, hence STEPS = 4 (hatch-tiny in bfloat16 against vLLM
    on a CPU: 0.1 to 2.0). A temperature divides logits, and so steps. bfloat16: 0.5 nats at 16 to 32; float32: FLOOR.
    """
    return max(FLOOR, STEPS * logit_step(dtype, size) / temperature)


def score_probe(
    scorer: ReplyScorer, probe: Probe, prompt: Prompt, blank: Prompt | None, version: int, dtype: str
) -> ProbeScores:
    """The learner's answer. prompt, blank: the tokenised prompts of the probe; `blank` is left out where None."""
    logits, scored = next_token(scorer, prompt)
    banned = tuple(np.flatnonzero(scorer.bias.cpu().numpy() < 0).tolist())
    core = scorer.model.model.config  # type: ignore[union-attr]
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    vision = {int(getattr(core, name)) for name in names}  # type: ignore[arg-type]
    tokens = [*np.argsort(-scored, kind="stable")[:LIKELIEST].tolist(), *sorted(vision)]
    grey = None if blank is None else next_token(scorer, blank)[1][tokens]
    bound = parity_bound(dtype, float(np.abs(logits[tokens[:LIKELIEST]]).max()), scorer.temperature)
    return ProbeScores(
        probe, version, prompt.token_ids, tuple(tokens), scored[tokens], grey, banned, scorer.temperature, bound
    )


def next_token(scorer: ReplyScorer, prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    """(vocabulary,) float32 each: logits and log-probabilities of the token that follows the prompt."""
    any_token = 0  # the packed row needs a reply; what it is does not matter for the place before it
    batch = pack(scorer.model, [prompt], [[(any_token,)]]).to(scorer.bias.device)
    logits, logprobs = (each[0].cpu().numpy() for each in scorer.distributions(batch))
    return logits, logprobs
