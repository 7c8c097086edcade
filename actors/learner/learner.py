"""The GRPO learner: one worker's policy, reference and optimizer, and one update of them."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from torch.nn.parallel import DistributedDataParallel

from actors.learner.bad_batches import BadBatch, write_bad_batch
from actors.learner.microbatches import Row, split_rows
from actors.runtime.messages import Group, Probe, ProbeScores, Request, Shard, StoredImage
from actors.weights.probe_scores import score_probe
from actors.weights.publish import learned_parts, only_learned
from hatch_ray.config import Config
from hatch_ray.config_sections import Precision
from hatch_ray.disk import when_there_is_room
from hatch_ray.learning.grpo import TokenLoss, grpo_loss
from hatch_ray.learning.trainer_state import (
    TrainerState,
    copied,
    load_state,
    make_optimizer,
    take_state,
    write_numbers,
    write_shards,
    write_state,
)
from hatch_ray.learning.workers import Workers, final_weights, frozen_checksum, save_trained, whole, write_weights
from hatch_ray.model.base import (
    banned_token_ids,
    eos_token_ids,
    load_processor,
    recompute_activations,
    set_trainable,
)
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import PackedBatch, pack
from hatch_ray.model.prompt_tokens import ImagePatches, Prompt, tokenize_prompt
from hatch_ray.run_folder import RunFolder

MISMATCH = {"float32": 0.02, "bfloat16": 0.2}
"""Largest mean difference (nats) between the learner's and vLLM's log-probability of a token at equal weights."""
BAD_IN_A_ROW = "bad_in_a_row"
"""In a checkpoint's numbers: how many of the last steps were skipped."""
SUMS = ("loss", "kl", "clip_share", "correction_share", "entropy", "sampler_gap")
"""Metrics summed over tokens, then over workers, then divided by the step's tokens."""


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


def size(batch: PackedBatch) -> int:
    """Tokens of a micro-batch."""
    return batch.input_ids.shape[1]


class Learner:
    """One worker's policy, reference and optimizer; `update` is one GRPO step. Runs with or without other workers.

    `run` is the run's folder (config.run_dir where it is not given): bad batches are kept below it. `bad_in_a_row`
    counts the last steps that were skipped. Where the model is in shards (`workers.sharded`), all workers call each
    method that computes with it or reads it, at the same time.
    """

    def __init__(
        self,
        config: Config,
        model: str | Path,
        steps: int,
        workers: Workers | None = None,
        run: str | Path | None = None,
    ) -> None:
        grpo = config.grpo
        self.config = config
        self.workers = workers or Workers(config.learner)
        self.device = self.workers.device
        self.first_model, self.run = str(model), RunFolder(run or config.run_dir)
        self.bad_in_a_row = 0
        self.processor = load_processor(model, config.model.max_pixels)
        self._processor_to_save: Any = None
        learner = config.learner
        self.model = self._load(model, learner.compute if config.model.lora_rank else learner.master).train()
        set_trainable(self.model, grpo.trainable)
        recompute_activations(self.model, learner.recompute, self.device)
        banned = banned_token_ids(
            self.processor, self.model.lm_head.out_features, eos_token_ids(self.model, self.processor)
        )
        self.reference: ReplyScorer | None = None
        if config.model.lora_rank:
            from hatch_ray.model.lora import add_lora  # peft is loaded by those alone who need it

            add_lora(self.model, config.model.lora_rank)
        elif grpo.beta:
            frozen = self._load(model, learner.compute).requires_grad_(False)
            self.reference = ReplyScorer(frozen, grpo.temperature, banned, learner.compute)
            self.workers.shard(self.reference, offload=learner.offload_reference)
        self.scorer = ReplyScorer(self.model, grpo.temperature, banned, learner.compute)
        self.wrapped = self.workers.wrap(self.scorer, ["distributions"])
        self.learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.learned_parts = learned_parts(self.model)
        self.optimizer, self.scheduler = make_optimizer(self.learning, grpo, steps * grpo.updates_per_step)

    def _load(self, folder: str | Path, dtype: Precision) -> Any:
        model = self.workers.load(folder, dtype)
        speed_up_vision(model, self.device)
        return model

    def learned_weights(self) -> dict[str, torch.Tensor]:
        """What an engine needs to become this version: the parts in which something learns, in the engine's dtype."""
        learned = only_learned(final_weights(self.model), self.learned_parts)
        return self.workers.gathered(learned, self.config.rollout.dtype)

    def weights(self) -> dict[str, torch.Tensor]:
        """The full state dict: adapters merged, the head included. Of a sharded model on rank 0 alone."""
        return self.workers.gathered(final_weights(self.model))

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
        batches = split_rows(prompts, shard.groups, grpo.token_budget, grpo.shared_prefix)
        packed = [self.packed(rows) for rows in batches]
        packed += [min(packed, key=size)] * (self.workers.passes(len(packed)) - len(packed))
        reference = self.reference_logprobs(packed)
        old: list[torch.Tensor] = []
        metrics: dict[str, float] = {}
        for update in range(grpo.updates_per_step):
            own = self._gradients(batches, packed, old, reference, shard.global_tokens)
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

    def _gradients(
        self,
        batches: list[list[Row]],
        packed: list[PackedBatch],
        old: list[torch.Tensor],
        reference: list[torch.Tensor | None],
        tokens: int,
    ) -> torch.Tensor:
        """Forward and backward of all micro-batches; returns the sums of SUMS over this worker's tokens.

        `packed` may be longer than `batches`: other workers of a sharded model have more, and this one goes with them.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(len(SUMS), device=self.device)
        # DistributedDataParallel and FSDP average over workers; the loss is a sum over all tokens of all workers.
        scale = self.workers.world / tokens
        for index, (rows, batch) in enumerate(zip(batches, packed, strict=False)):
            with nullcontext() if index == len(packed) - 1 else self._no_sum():
                terms = self.token_terms(rows, batch, old, index, reference[index])
                (terms.loss.loss.sum() * scale).backward()
            gap = (terms.logprobs.detach() - terms.sampled).abs()
            loss = terms.loss
            values = (loss.loss.detach(), loss.kl, loss.clipped, loss.corrected, terms.entropy, gap)
            sums += torch.stack([value.sum() for value in values])
        for filler in packed[len(batches) :]:
            (self.wrapped(filler)[0].sum() * 0).backward()
        return sums

    def _no_sum(self) -> AbstractContextManager[None]:
        """Whole copies sum their gradients once, after the last micro-batch; shards have no room for unsummed ones."""
        return self.wrapped.no_sync() if isinstance(self.wrapped, DistributedDataParallel) else nullcontext()

    def token_terms(
        self,
        rows: list[Row],
        batch: PackedBatch,
        old: list[torch.Tensor],
        index: int,
        reference: torch.Tensor | None = None,
    ) -> TokenTerms:
        """Forward pass of one micro-batch. `old` keeps pi_old by index: the first pass over a batch appends it.

        reference (N,): the reference's log-probabilities (`reference_logprobs`), where grpo.beta is not 0.
        """
        grpo = self.config.grpo
        sampled = torch.cat([torch.tensor(r.logprobs) for row in rows for r in row.replies]).to(self.device)
        advantages = torch.tensor([a for row in rows for a in row.advantages], device=self.device)[batch.reply]
        logprobs, entropy = self.wrapped(batch)
        if index == len(old):
            old.append(logprobs.detach())
        loss = grpo_loss(
            logprobs, old[index], sampled, advantages, reference,
            clip=grpo.clip, beta=grpo.beta, importance_cap=grpo.importance_cap,
        )  # fmt: skip
        return TokenTerms(logprobs, old[index], sampled, advantages, entropy, loss)

    def _agree(self, own: torch.Tensor, norm: torch.Tensor) -> tuple[bool, torch.Tensor]:
        """Whether every worker's sums and gradient are finite, one answer for all, and the sums over all workers."""
        bad = not (torch.isfinite(own).all() and torch.isfinite(norm))
        vote = self.workers.sum(torch.cat([own, torch.tensor([float(bad)], device=self.device)]))
        return vote[-1].item() == 0, vote[:-1]

    def _skip(
        self, shard: Shard, prompts: list[Prompt], old: list[torch.Tensor], update: int, own: torch.Tensor
    ) -> bool:
        """Keep the batch, let the schedule go on, and end the run over budget. Returns whether the batch was kept."""
        self.bad_in_a_row += 1
        rank, gradients = self.workers.rank, [(name, p.grad) for name, p in self._learning_by_name().items()]
        learning = self.workers.gathered(self._learning_by_name())
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
            old=torch.cat(old).cpu(),
        )
        kept = True
        try:
            write_bad_batch(self.run.bad_batches, batch, learning if rank == 0 else None, self.config.grpo.bad_steps)
        except OSError as error:  # a full disk must not end a run that can go on; the driver says that it is missing
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

    @torch.no_grad()
    def reference_logprobs(self, packed: list[PackedBatch]) -> list[torch.Tensor | None]:
        """The reference's log-probabilities of each micro-batch, (N,) each; None where grpo.beta is 0."""
        if not self.config.grpo.beta:
            return [None] * len(packed)
        if self.reference is None:
            from hatch_ray.model.lora import without_lora

            with without_lora(self.model):
                return [self.scorer(batch)[0] for batch in packed]
        moves = self.config.learner.offload_reference and not self.workers.sharded
        if moves:
            self.reference.to(self.device)
        found: list[torch.Tensor | None] = [self.reference(batch)[0] for batch in packed]
        if moves:
            self.reference.to("cpu")
        return found

    def frozen_checksum(self) -> str:
        """Of what grpo.trainable leaves as it is, this worker's part; empty where that is nothing."""
        return frozen_checksum(self.model, self.config.grpo.trainable)

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
        prompt = self._prompt(group.request)
        if len(prompt.token_ids) != group.rollout.prompt_tokens:
            raise RuntimeError(
                f"grpo: the prompt of {group.request.id} has {len(prompt.token_ids)} tokens here and "
                f"{group.rollout.prompt_tokens} in vLLM: their image processors differ"
            )
        return prompt

    def score_probe(self, probe: Probe, version: int, with_blank: bool = False) -> ProbeScores:
        """What an engine with the present weights must answer; `with_blank`: to grey images too."""
        blank = self._prompt(probe.blank) if with_blank else None
        return score_probe(self.scorer, probe, self._prompt(probe.request), blank, version, self.config.precision)

    def _prompt(self, request: Request) -> Prompt:
        return tokenize_prompt(self.processor, request.prompt, [self._image(image) for image in request.images])

    def _image(self, image: StoredImage) -> ImagePatches:
        if image.patches is None:
            raise ValueError(f"image {image.hash} came without patches; make its request with for_learner=True")
        with warnings.catch_warnings():  # the patches are read where they lie, in the object store
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            pixels = torch.from_numpy(ray.get(image.patches.ref, timeout=60))
        return ImagePatches(pixels, image.patches.grid, image.hash)

    def packed(self, rows: list[Row]) -> PackedBatch:
        """A micro-batch as the scorer takes it, on the learner's device."""
        replies = [[reply.token_ids for reply in row.replies] for row in rows]
        shared = self.config.grpo.shared_prefix
        return pack(self.model, [row.prompt for row in rows], replies, shared).to(self.device)

    def save(self, out: Path, first: str | Path) -> None:
        """The policy as a Hugging Face folder; with LoRA the merged weights in a model like `first`."""
        save_trained(self.workers, self.model, first, self.config.learner.master, self.processor, out)

    def snapshot(self, first: str | Path) -> Callable[[Path], None]:
        """Copy weights and state in memory; what is returned writes them into a checkpoint's folder, in any thread."""
        if self._processor_to_save is None:  # a fast tokenizer may not be used by two threads at once
            self._processor_to_save = copy.deepcopy(self.processor)
        weights, state, processor = copied(self.weights()), self.state(), self._processor_to_save
        master = self.config.learner.master

        def write(folder: Path) -> None:
            write_weights(weights, self.model, first, master, processor, folder / "model")
            write_state(state, folder)

        return write

    def write_together(self, folder: Path, first: str | Path) -> None:
        """Write a checkpoint's content: each worker of a sharded model its part, rank 0 the model for the engines."""
        numbers = write_shards(folder, self._learning_by_name(), self.optimizer, self.scheduler)
        self.save(folder / "model", first)
        if self.workers.first:
            numbers |= {BAD_IN_A_ROW: self.bad_in_a_row}
            when_there_is_room(folder, lambda: write_numbers(numbers, folder))

    def _learning_by_name(self) -> dict[str, torch.Tensor]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def state(self) -> TrainerState:
        """A copy of what a resumed run needs beside the step (the order of the data follows from it)."""
        state = take_state(self._learning_by_name(), self.optimizer, self.scheduler)
        state.numbers[BAD_IN_A_ROW] = self.bad_in_a_row
        return state

    def load(self, folder: Path) -> None:
        """Take over the state in a checkpoint's folder, whatever number of workers wrote it."""
        numbers = load_state(folder, self._learning_by_name(), self.optimizer, self.scheduler)
        self.bad_in_a_row = numbers[BAD_IN_A_ROW]
