"""Group-relative policy optimisation: advantages and loss. Pure torch; no model, no Ray.

    A_g   = (r_g - mean r) / (std r + 1e-4)                   within the G replies to one prompt
    rho_t = pi(t) / pi_old(t)                                 pi_old: the learner when it took up the batch
    w_t   = min(pi_old(t) / pi_vllm(t), cap)                  truncated importance correction (TIS), no gradient
    k3_t  = pi_ref/pi - log(pi_ref/pi) - 1                    Schulman's estimator of KL(pi || pi_ref)
    loss  = 1/T sum_t [ -min(rho_t A, clip(rho_t, 1-eps, 1+eps) A) w_t + beta rho_t k3_t ]

Variants, each a setting of its own:

    1 + eps_high in place of 1 + eps                          clip-higher (DAPO; grpo.clip_high)
    rho_t = exp(1/|y| sum_t log pi(t)/pi_old(t))              one ratio a reply y (GSPO; grpo.ratio=sequence)
    1/R sum_y 1/|y| sum_t in place of 1/T sum_t               R replies count alike (grpo.mean=sequence)
    groups with max r = min r are drawn again                 dynamic sampling (DAPO; grpo.redraw, before it comes here:
                                                              `actors.experience.batch.without_variance`)

T counts the reply tokens of the whole batch over all workers ("dapo" in TRL's terms). A reply's end token is part of
it. rho_t beside k3_t makes the term's gradient the unbiased one of the reverse KL (DeepSeek-V3.2, TRL's default).
Source: paper, section 3.4 (GRPO, beta, clip); TRL's GRPOTrainer is the yardstick (tests/learning/test_grpo_loss.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

STD_EPSILON = 1e-4
VARIANCE_TOLERANCE = 1e-6
"""A group whose rewards differ by less than this is one of equal rewards: rounding must not become a signal."""


@dataclass(frozen=True)
class TokenLoss:
    """Each token's loss (N,), with what there is to know about it (no gradient).

    kl         k3 to the reference; zeros without one.
    clipped    1 where the clip took the token's gradient away.
    corrected  1 where the importance correction was cut at its cap.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    clipped: torch.Tensor
    corrected: torch.Tensor


def group_advantages(rewards_PG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages (P, G) of P groups of G rewards, and which groups (P,) bool have equal rewards (advantage 0).

    Raises ValueError for groups of one, or rewards that are not finite.
    """
    if rewards_PG.ndim != 2 or rewards_PG.shape[1] < 2:
        raise ValueError(f"rewards must be (groups, at least 2), got {tuple(rewards_PG.shape)}")
    if not torch.isfinite(rewards_PG).all():
        raise ValueError("a reward is not finite")
    centred = rewards_PG - rewards_PG.mean(1, keepdim=True)
    zero_P = (rewards_PG.amax(1) - rewards_PG.amin(1)) <= VARIANCE_TOLERANCE
    advantages_PG = centred / (rewards_PG.std(1, keepdim=True) + STD_EPSILON)
    return advantages_PG.masked_fill(zero_P[:, None], 0.0), zero_P


def importance_correction(
    old_logprobs_N: torch.Tensor, vllm_logprobs_N: torch.Tensor, cap: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """w (N,) between 0 and cap, and where it was cut (N,) bool."""
    ratio = torch.exp(old_logprobs_N - vllm_logprobs_N)
    return ratio.clamp(max=cap), ratio > cap


def reply_lengths(reply_N: torch.Tensor) -> torch.Tensor:
    """Tokens of each reply, (replies,)."""
    return torch.bincount(reply_N)


def reply_means(values_N: torch.Tensor, reply_N: torch.Tensor) -> torch.Tensor:
    """The mean over each reply's tokens, (replies,)."""
    lengths = reply_lengths(reply_N)
    return values_N.new_zeros(len(lengths)).index_add(0, reply_N, values_N) / lengths


def alike(reply_N: torch.Tensor, mean_length: float) -> torch.Tensor:
    """(N,) weights with which a sum over tokens, divided by all tokens of a step, lets its replies count alike.

    mean_length: tokens a reply over the whole step.
    """
    return mean_length / reply_lengths(reply_N)[reply_N]


def grpo_loss(
    logprobs_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    vllm_logprobs_N: torch.Tensor,
    advantages_N: torch.Tensor,
    ref_logprobs_N: torch.Tensor | None,
    *,
    clip: float,
    beta: float,
    importance_cap: float,
    clip_high: float = 0.0,
    reply_N: torch.Tensor | None = None,
) -> TokenLoss:
    """The loss of each token, not yet summed. Only `logprobs_N` carries a gradient.

    advantages_N is the reply's advantage at each of its tokens. ref_logprobs_N may be None when beta is 0. clip_high: 0
    is `clip`. reply_N: the reply that each token belongs to, counted from 0, where the ratio is one a reply.
    """
    if beta and ref_logprobs_N is None:
        raise ValueError("beta > 0 needs the reference's log-probabilities")
    high = clip_high or clip
    change = logprobs_N - old_logprobs_N
    ratio = torch.exp(change if reply_N is None else reply_means(change, reply_N)[reply_N])
    weight, cut = importance_correction(old_logprobs_N, vllm_logprobs_N, importance_cap)
    surrogate = torch.min(ratio * advantages_N, ratio.clamp(1 - clip, 1 + high) * advantages_N)
    loss = -surrogate * weight
    kl = torch.zeros_like(logprobs_N)
    if ref_logprobs_N is not None:
        difference = ref_logprobs_N - logprobs_N
        kl = torch.exp(difference) - difference - 1
        loss = loss + beta * ratio * kl
    clipped = ((ratio < 1 - clip) & (advantages_N < 0)) | ((ratio > 1 + high) & (advantages_N > 0))
    return TokenLoss(loss, kl.detach(), clipped.float(), cut.float())
