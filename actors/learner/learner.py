"""The GRPO learner: one update of a worker's policy, from a shard of groups to the optimizer's step.

A shard is cut into micro-batches, what is computed at a time: whole groups, up to a token budget, or parts of one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from safetensors import SafetensorError

from actors.learner.bad_batches import BadBatch, write_bad_batch
from actors.learner.policy import Policy
from actors.runtime.messages import Group, Reply, Shard
from hatch_ray.learning.grpo import TokenLoss, alike, grpo_loss
from hatch_ray.learning.workers import whole
from hatch_ray.model.families import family_of
from hatch_ray.model.kept_prompts import Unit, make_units, with_passes
from hatch_ray.model.packing import PackedBatch, pack
from hatch_ray.model.prompt_tokens import Prompt

MISMATCH = {"float32": 0.02, "bfloat16": 0.2}
"""Largest mean difference (nats) between the learner's and vLLM's log-probability of a token at equal weights."""
SUMS = ("loss", "kl", "clip_share", "correction_share", "entropy", "sampler_gap")
"""Metrics summed over tokens, then over workers, then divided by the step's tokens."""


@dataclass(frozen=True)
class Row:
    """Some replies of one group, as they enter a forward pass: prompt, replies, their advantages."""

    prompt: Prompt
    replies: tuple[Reply, ...]
    advantages: tuple[float, ...]


@dataclass(frozen=True)
class TokenTerms:
    """What GRPO makes of the N reply tokens of one micro-batch, each (N,): log-probabilities (with gradient), those of
    the first pass over the batch (pi_old), vLLM's, the reply's advantage, entropy, and the loss."""

    logprobs: torch.Tensor
    old: torch.Tensor
    sampled: torch.Tensor
    advantages: torch.Tensor
    entropy: torch.Tensor
    loss: TokenLoss


class Learner(Policy):
    """A policy and its training; `update` is one GRPO step. Runs with or without other workers."""

    def update(self, shard: Shard) -> dict[str, float]:
        """Train on one shard. Returns the step's metrics, equal on all workers and finite.

        A loss or gradient that is not finite on any worker is applied by none: weights and optimizer stay as they are,
        every worker keeps its batch in RUN/bad_batches, and the metric `skipped` is 1. The step counts as taken, so
        that versions, ledger and learning rate go on as planned. With several updates a step, the finite ones before
        the bad one stay, those after it are left out.

        Raises RuntimeError when the prompt differs from the one vLLM saw, FloatingPointError (on all workers) when
        grpo.bad_steps steps in a row are skipped.
        """
        grpo = self.config.grpo
        prompts = [self.prompt(group) for group in shard.groups]
        batches = self.batches(prompts, shard.groups)
        units = self.units(batches)
        units = with_passes(units, self.workers.most([unit.passes for unit in units]))
        packed = [self.packed(rows) for rows in batches]
        reference = self.reference_logprobs(units, packed)
        old: dict[int, torch.Tensor] = {}
        metrics: dict[str, float] = {}
        for update in range(grpo.updates_per_step):
            own = self._gradients(units, batches, packed, old, reference, shard)
            norm = whole(torch.nn.utils.get_total_norm([p.grad for p in self.learning if p.grad is not None]))
            good, sums = self._agree(own, norm)
            if update == 0:
                metrics = dict(zip(SUMS, (sums / shard.global_tokens).tolist(), strict=True))
                self._check_agreement(shard, metrics["sampler_gap"])
            rate = self.optimizer.param_groups[0]["lr"]
            metrics |= {"grad_norm": norm.item(), "lr": rate, "skipped": float(not good)}
            if not good:
                metrics["batch_kept"] = float(self._skip(shard, prompts, old, update, own))
                break
            torch.nn.utils.clip_grads_with_norm_(self.learning, grpo.grad_clip, norm)
            self.optimizer.step()
            self.scheduler.step()
        else:
            self.bad_in_a_row = 0
        metrics["tokens"] = float(shard.global_tokens)
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def batches(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> list[list[Row]]:
        """What is computed at a time (`split_rows`)."""
        grpo, config = self.config.grpo, self.model.config
        merged = family_of(config).patches_per_token(vars(config.vision_config))
        return split_rows(prompts, groups, grpo.token_budget, merged, grpo.shared_prefix)

    def _gradients(
        self,
        units: list[Unit],
        batches: list[list[Row]],
        packed: list[PackedBatch],
        old: dict[int, torch.Tensor],
        reference: dict[int, torch.Tensor],
        shard: Shard,
    ) -> torch.Tensor:
        """Forward and backward of all micro-batches; returns the sums of SUMS over this worker's tokens."""
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(len(SUMS), device=self.device)
        # Gradients are averaged over workers; the loss is a sum over all tokens of all workers.
        scale = self.workers.world / shard.global_tokens
        mean_length = shard.global_tokens / shard.global_replies
        for number, logprobs, entropy in self.scorer.each(units, packed):
            if number is None:
                (logprobs.sum() * 0).backward()
                continue
            batch = packed[number]
            terms = self.token_terms(batches[number], batch, logprobs, entropy, old, number, mean_length, reference)
            (terms.loss.loss.sum() * scale).backward()
            gap = (terms.logprobs.detach() - terms.sampled).abs()
            loss = terms.loss
            values = (loss.loss.detach(), loss.kl, loss.clipped, loss.corrected, terms.entropy, gap)
            sums += torch.stack([value.sum() for value in values])
        self.workers.average_gradients(self.learning)
        return sums

    def token_terms(
        self,
        rows: list[Row],
        batch: PackedBatch,
        logprobs: torch.Tensor,
        entropy: torch.Tensor,
        old: dict[int, torch.Tensor],
        number: int,
        mean_length: float,
        reference: Mapping[int, torch.Tensor],
    ) -> TokenTerms:
        """GRPO's terms of one micro-batch. `old` keeps pi_old by number: the first pass over a batch puts it in.

        mean_length: reply tokens a reply of the whole step (grpo.mean=sequence). reference: the reference's
        log-probabilities by number (`reference_logprobs`), where grpo.beta is not 0.
        """
        grpo = self.config.grpo
        sampled = torch.cat([torch.tensor(r.logprobs) for row in rows for r in row.replies]).to(self.device)
        advantages = torch.tensor([a for row in rows for a in row.advantages], device=self.device)[batch.reply]
        before = old.setdefault(number, logprobs.detach())
        loss = grpo_loss(
            logprobs, before, sampled, advantages, reference.get(number),
            clip=grpo.clip, beta=grpo.beta, importance_cap=grpo.importance_cap, clip_high=grpo.clip_high,
            reply_N=batch.reply if grpo.ratio == "sequence" else None,
        )  # fmt: skip
        if grpo.mean == "sequence":
            loss = replace(loss, loss=loss.loss * alike(batch.reply, mean_length))
        return TokenTerms(logprobs, before, sampled, advantages, entropy, loss)

    def _agree(self, own: torch.Tensor, norm: torch.Tensor) -> tuple[bool, torch.Tensor]:
        """Whether every worker's sums and gradient are finite, one answer for all, and the sums over all workers."""
        bad = not (torch.isfinite(own).all() and torch.isfinite(norm))
        vote = self.workers.sum(torch.cat([own, torch.tensor([float(bad)], device=self.device)]))
        return vote[-1].item() == 0, vote[:-1]

    def _skip(
        self, shard: Shard, prompts: list[Prompt], old: dict[int, torch.Tensor], update: int, own: torch.Tensor
    ) -> bool:
        """Keep the batch, let the schedule go on, and end the run over budget. Returns whether the batch was kept."""
        self.bad_in_a_row += 1
        rank, gradients = self.workers.rank, [(name, p.grad) for name, p in self.learning_by_name().items()]
        learning = self.workers.gathered(self.learning_by_name().items())
        batch = BadBatch(
            step=shard.step + 1,
            rank=rank,
            world=self.workers.world,
            update=update,
            tokens=shard.global_tokens,
            own_sums={name: repr(value) for name, value in zip(SUMS, own.tolist(), strict=True)},
            bad_gradients=tuple(
                name for name, grad in gradients if grad is not None and not whole(torch.isfinite(grad).all())
            ),
            config=self.config,
            model=self.first_model,
            prompts=tuple(prompts),
            groups=shard.groups,
            old=torch.cat([old[number] for number in sorted(old)]).cpu(),
        )
        kept = True
        try:
            write_bad_batch(self.run.bad_batches, batch, learning if rank == 0 else None, self.config.grpo.bad_steps)
        except (
            OSError,
            SafetensorError,
        ) as error:  # a full disk must not end a run that can go on; the driver says that it is missing
            kept = False
            warnings.warn(f"grpo: the bad batch of step {batch.step} could not be kept: {error}", stacklevel=2)
        self.workers.wait()  # no worker may end the run while another one writes
        with warnings.catch_warnings():  # the first step of all may be one that is skipped
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
            for _ in range(update, self.config.grpo.updates_per_step):
                self.scheduler.step()
        if self.bad_in_a_row >= self.config.grpo.bad_steps:
            raise FloatingPointError(
                f"grpo: loss or gradient not finite at {self.bad_in_a_row} steps in a row, up to step {batch.step}. "
                f"`python -m tools.replay {self.run.bad_batches / batch.name}` (in a clone) looks for the cause; what "
                "usually helps: a lower grpo.lr, more grpo.warmup_steps, a lower grpo.grad_clip or "
                "grpo.importance_cap, learner.compute=float32. No bad step was applied: the last checkpoint in "
                f"{self.run.checkpoints('grpo')} is good and kept; a new run can start from its model "
                "(model.base=..., stages=[grpo])"
            )
        return kept

    def _check_agreement(self, shard: Shard, gap: float) -> None:
        """At equal weights the two engines must agree, or every gradient is wrong without a word."""
        fresh = all(group.rollout.version == shard.step for group in shard.groups)
        bound = MISMATCH[self.config.precision]
        if fresh and bound < gap < math.inf:  # one that is not finite makes the step a bad one, which is skipped
            raise RuntimeError(
                f"grpo: learner and vLLM differ by {gap:.3g} nats a token at step {shard.step} with equal weights "
                f"(bound {bound:g}): prompts, images, temperature or weights do not reach one of them as they should"
            )

    def prompt(self, group: Group) -> Prompt:
        """The tokens and patches of a group's prompt; the driver has processed its images."""
        prompt = self.tokenized(group.request)
        if len(prompt.token_ids) != group.rollout.prompt_tokens:
            raise RuntimeError(
                f"grpo: the prompt of {group.request.id} has {len(prompt.token_ids)} tokens here and "
                f"{group.rollout.prompt_tokens} in vLLM: their image processors differ"
            )
        return prompt

    def units(self, batches: list[list[Row]]) -> list[Unit]:
        """Which micro-batches are parts of one group."""
        return make_units([[row.prompt for row in rows] for rows in batches], self.config.grpo.shared_prefix)

    def packed(self, rows: list[Row]) -> PackedBatch:
        """A micro-batch as the scorer takes it, on the learner's device."""
        replies = [[reply.token_ids for reply in row.replies] for row in rows]
        shared = self.config.grpo.shared_prefix
        return pack(self.model, [row.prompt for row in rows], replies, shared).to(self.device)


def split_rows(
    prompts: Sequence[Prompt], groups: Sequence[Group], token_budget: int, merged: int, shared: bool = True
) -> list[list[Row]]:
    """Batches of at most `token_budget` tokens: whole groups, as many as fit; a group that alone is longer is cut into
    parts that fit beside its prompt, each of at least one reply. shared=False counts a prompt for every reply.

    The image encoder's work on an image's patches counts as much as the image's tokens do (one for `merged` patches),
    once for each image.

    Attention pads to the longest prompt and reply of a batch, so a batch is also full when its replies would hold more
    than G times as many padded keys as it may have tokens: one long prompt takes few short ones along.
    """
    batches: list[list[Row]] = []
    cut = False  # whether the last batch is a part of a group, which stays alone
    for prompt, group in zip(prompts, groups, strict=True):
        size = len(group.rollout.replies)
        rows = _parts(prompt, group, token_budget, shared)
        part = shared and len(rows) > 1
        for row in rows:
            joined = [*batches[-1], row] if batches else [row]
            fits = sum(row_tokens(r, shared) for r in joined) + encoded_tokens(joined, merged) <= token_budget
            if not batches or part or cut or not fits or padded_keys(joined) > size * token_budget:
                batches.append([])
            batches[-1].append(row)
            cut = part
    return batches


def row_tokens(row: Row, shared: bool = True) -> int:
    """Tokens of a row: its prompt once, or once a reply, and its replies."""
    prompts = 1 if shared else len(row.replies)
    return prompts * len(row.prompt.token_ids) + sum(len(reply.token_ids) for reply in row.replies)


def encoded_tokens(rows: Sequence[Row], merged: int) -> int:
    """Image tokens that the encoder makes for a batch; an image that is shown several times is encoded once."""
    images = {image.key or id(image): image for row in rows for image in row.prompt.images}
    return sum(image.patches for image in images.values()) // merged


def padded_keys(rows: Sequence[Row]) -> int:
    """Keys that the replies of a batch attend to, all padded to the longest prompt and reply."""
    replies = [reply for row in rows for reply in row.replies]
    longest = max(len(reply.token_ids) for reply in replies)
    return len(replies) * (max(len(row.prompt.token_ids) for row in rows) + longest)


def _parts(prompt: Prompt, group: Group, token_budget: int, shared: bool) -> list[Row]:
    parts: list[list[int]] = []
    room = 0
    for index, reply in enumerate(group.rollout.replies):
        size = len(reply.token_ids) + (0 if shared else len(prompt.token_ids))
        if not parts or size > room:
            parts.append([])
            room = token_budget - (len(prompt.token_ids) if shared else 0)
        parts[-1].append(index)
        room -= size
    replies, advantages = group.rollout.replies, group.advantages
    return [Row(prompt, tuple(replies[i] for i in part), tuple(float(advantages[i]) for i in part)) for part in parts]
