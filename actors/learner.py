"""The GRPO learner: workers of Ray Train that take shards, update the policy, and publish its weights."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import get_device
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler

from actors.deadlines import collectives, enter_process, limits, wait_for
from actors.fit import Checkpoints
from actors.messages import Group, Probe, ProbeScores, Reply, Request, Shard, StoredImage
from actors.parity import score_probe
from actors.weights import Publisher, learned_parts, only_learned
from hatch_ray.config import Config
from hatch_ray.learning.grpo import grpo_loss
from hatch_ray.model.base import banned_token_ids, eos_token_ids, load_model, load_processor, save_model
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import PackedBatch, pack
from hatch_ray.model.prompt_tokens import ImagePatches, Prompt, tokenize_prompt
from hatch_ray.run_folder import RunFolder

MISMATCH = {"float32": 0.02, "bfloat16": 0.2}
"""Largest mean difference (nats) between the learner's and vLLM's log-probability of a token at equal weights."""
SUMS = ("loss", "kl", "clip_share", "correction_share", "entropy", "sampler_gap")
"""Metrics summed over tokens, then over workers, then divided by the step's tokens."""


@dataclass(frozen=True)
class GrpoJob:
    """What a worker needs. `model` is the stage's first model and the reference of the KL term; probes: fewest images
    first."""

    config: Config
    run: Path
    model: str
    steps: int
    experience: ray.actor.ActorHandle
    weights: ray.actor.ActorHandle
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class Row:
    """Some replies of one group, as they enter a forward pass: prompt, replies, their advantages."""

    prompt: Prompt
    replies: tuple[Reply, ...]
    advantages: tuple[float, ...]


def split_rows(
    prompts: Sequence[Prompt], groups: Sequence[Group], token_budget: int, shared: bool = True
) -> list[list[Row]]:
    """Batches of at most `token_budget` tokens: whole groups, as many as fit; a group that alone is longer is cut into
    parts that fit, each with the prompt again and at least one reply. shared=False counts a prompt for every reply.

    Attention pads to the longest prompt and reply of a batch, so a batch is also full when its replies would hold more
    than G times as many padded keys as it may have tokens: one long prompt takes few short ones along.
    """
    batches: list[list[Row]] = []
    for prompt, group in zip(prompts, groups, strict=True):
        size = len(group.rollout.replies)
        for row in _parts(prompt, group, token_budget, shared):
            joined = [*batches[-1], row] if batches else [row]
            fits = sum(row_tokens(r, shared) for r in joined) <= token_budget
            if not batches or not fits or padded_keys(joined) > size * token_budget:
                batches.append([])
            batches[-1].append(row)
    return batches


def row_tokens(row: Row, shared: bool = True) -> int:
    """Tokens of a row: its prompt once, or once a reply, and its replies."""
    prompts = 1 if shared else len(row.replies)
    return prompts * len(row.prompt.token_ids) + sum(len(reply.token_ids) for reply in row.replies)


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


class Learner:
    """One worker's policy, reference and optimizer; `update` is one GRPO step. Runs with or without other workers."""

    def __init__(self, config: Config, model: str | Path, steps: int, device: torch.device, world: int = 1) -> None:
        grpo = config.grpo
        self.config, self.device, self.world = config, device, world
        self.processor = load_processor(model, config.model.max_pixels)
        self.model = load_model(model, config.model.dtype).to(device).train()
        banned = banned_token_ids(
            self.processor, self.model.lm_head.out_features, eos_token_ids(self.model, self.processor)
        )
        self.reference: ReplyScorer | None = None
        if config.model.lora_rank:
            from hatch_ray.model.lora import add_lora  # peft is loaded by those alone who need it

            add_lora(self.model, config.model.lora_rank)
        elif grpo.beta:
            frozen = load_model(model, config.model.dtype).to(device).requires_grad_(False)
            self.reference = ReplyScorer(frozen, grpo.temperature, banned)
        self.scorer = ReplyScorer(self.model, grpo.temperature, banned)
        self.wrapped = DistributedDataParallel(self.scorer, broadcast_buffers=False) if world > 1 else self.scorer
        self.learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.learned_parts = learned_parts(self.model)
        self.optimizer = torch.optim.AdamW(self.learning, lr=grpo.lr, weight_decay=grpo.weight_decay)
        name = "constant_with_warmup" if grpo.schedule == "constant" else "cosine"
        self.scheduler = get_scheduler(name, self.optimizer, grpo.warmup_steps, steps * grpo.updates_per_step)

    def learned_weights(self) -> dict[str, torch.Tensor]:
        """What an engine needs to become this version: of `weights`, the parts in which something learns."""
        return only_learned(self.weights(), self.learned_parts)

    def weights(self) -> dict[str, torch.Tensor]:
        """The full state dict as an engine needs it: adapters merged, the head included."""
        if not self.config.model.lora_rank:
            return self.model.state_dict()
        from hatch_ray.model.lora import merged_state

        return merged_state(self.model)

    def update(self, shard: Shard) -> dict[str, float]:
        """Train on one shard. Returns the step's metrics, equal on all workers.

        Raises RuntimeError when the prompt differs from the one vLLM saw, FloatingPointError for a loss that is not
        finite.
        """
        grpo = self.config.grpo
        prompts = [self.prompt(group) for group in shard.groups]
        batches = split_rows(prompts, shard.groups, grpo.token_budget, grpo.shared_prefix)
        packed = [self._pack(rows) for rows in batches]
        old: list[torch.Tensor] = []
        sums = torch.zeros(len(SUMS), device=self.device)
        for update in range(grpo.updates_per_step):
            self.optimizer.zero_grad(set_to_none=True)
            for index, (rows, batch) in enumerate(zip(batches, packed, strict=True)):
                last = index == len(batches) - 1
                with nullcontext() if last or self.world == 1 else self.wrapped.no_sync():
                    values = self._backward(rows, batch, old, index, shard.global_tokens)
                    sums += values if update == 0 else 0
            norm = torch.nn.utils.clip_grad_norm_(self.learning, grpo.grad_clip)
            if not torch.isfinite(norm):
                raise FloatingPointError(
                    f"grpo: the gradient is not finite at step {shard.step}; lower grpo.lr or grpo.importance_cap. "
                    "The run goes on from its last checkpoint when started again"
                )
            rate = self.optimizer.param_groups[0]["lr"]
            self.optimizer.step()
            self.scheduler.step()
        if self.world > 1:
            distributed.all_reduce(sums)
        metrics = dict(zip(SUMS, (sums / shard.global_tokens).tolist(), strict=True))
        self._check_agreement(shard, metrics["sampler_gap"])
        return metrics | {"grad_norm": norm.item(), "lr": rate, "tokens": float(shard.global_tokens)}

    def _backward(
        self, rows: list[Row], batch: PackedBatch, old: list[torch.Tensor], index: int, tokens: int
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch; returns the sums of SUMS over its tokens.

        `old` keeps the log-probabilities of the first pass over the batch, by index: they are pi_old.
        """
        grpo = self.config.grpo
        sampled = torch.cat([torch.tensor(r.logprobs) for row in rows for r in row.replies]).to(self.device)
        advantages = torch.tensor([a for row in rows for a in row.advantages], device=self.device)[batch.reply]
        reference = self._reference_logprobs(batch)
        logprobs, entropy = self.wrapped(batch)
        if index == len(old):
            old.append(logprobs.detach())
        terms = grpo_loss(
            logprobs, old[index], sampled, advantages, reference,
            clip=grpo.clip, beta=grpo.beta, importance_cap=grpo.importance_cap,
        )  # fmt: skip
        # DistributedDataParallel averages over workers; the loss is a sum over all tokens of all workers.
        (terms.loss.sum() * (self.world / tokens)).backward()
        gap = (logprobs.detach() - sampled).abs()
        values = (terms.loss.detach(), terms.kl, terms.clipped, terms.corrected, entropy, gap)
        return torch.stack([value.sum() for value in values])

    def _reference_logprobs(self, batch: PackedBatch) -> torch.Tensor | None:
        if not self.config.grpo.beta:
            return None
        with torch.no_grad():
            if self.reference is not None:
                return self.reference(batch)[0]
            from hatch_ray.model.lora import without_lora

            with without_lora(self.model):
                return self.scorer(batch)[0]

    def _check_agreement(self, shard: Shard, gap: float) -> None:
        """At equal weights the two engines must agree, or every gradient is wrong without a word."""
        fresh = all(group.rollout.version == shard.step for group in shard.groups)
        bound = MISMATCH[self.config.model.dtype]
        if fresh and gap > bound:
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
        return score_probe(self.scorer, probe, self._prompt(probe.request), blank, version, self.config.model.dtype)

    def _prompt(self, request: Request) -> Prompt:
        return tokenize_prompt(self.processor, request.prompt, [self._image(image) for image in request.images])

    def _image(self, image: StoredImage) -> ImagePatches:
        if image.patches is None:
            raise ValueError(f"image {image.hash} came without patches; make its request with for_learner=True")
        with warnings.catch_warnings():  # the patches are read where they lie, in the object store
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            pixels = torch.from_numpy(ray.get(image.patches.ref, timeout=60))
        return ImagePatches(pixels, image.patches.grid, image.hash)

    def _pack(self, rows: list[Row]) -> PackedBatch:
        replies = [[reply.token_ids for reply in row.replies] for row in rows]
        shared = self.config.grpo.shared_prefix
        return pack(self.model, [row.prompt for row in rows], replies, shared).to(self.device)

    def save(self, out: Path, first: str | Path) -> None:
        """The policy as a Hugging Face folder; with LoRA the merged weights in a model like `first`."""
        if self.config.model.lora_rank:
            merged = load_model(first, self.config.model.dtype)
            merged.load_state_dict(self.weights())
            save_model(merged, self.processor, out)
        else:
            save_model(self.model, self.processor, out)

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the step (the order of the data follows from it)."""
        learning = {name: p.detach().cpu() for name, p in self.model.named_parameters() if p.requires_grad}
        return {
            "learning": learning,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over `state`."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state["learning"].items():
                parameters[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])


def learner_loop(settings: dict[str, Any]) -> None:
    """What every Ray Train worker runs. Rank 0 reports, publishes and saves."""
    job: GrpoJob = ray.get(settings["job"], timeout=60)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    enter_process(f"learner rank {rank}", job.config.model_copy(update={"run_dir": job.run}), [job.experience])
    torch.set_num_threads(max(1, math.floor(job.config.learner.cpus)))
    torch.manual_seed(job.config.seed)
    learner = Learner(job.config, job.model, job.steps, get_device(), world)
    run = RunFolder(job.run)
    checkpoints = Checkpoints(run.checkpoints("grpo"))
    latest = checkpoints.latest()
    first = 0
    if latest is not None:
        first = checkpoints.step(latest)
        learner.restore(torch.load(latest / "trainer.pt", weights_only=True))
    publisher = Publisher(job.weights)
    if rank == 0:
        scores = [learner.score_probe(probe, first, with_blank=True) for probe in job.probes]
        wait_for(job.experience.put_probes.remote(scores), "grpo: handing over the learner's probes", limits.call)
    before = time.monotonic()
    for step in range(first, job.steps):
        taken = job.experience.take.remote(step, rank)
        shard = wait_for(taken, f"grpo: shard of step {step}", limits.call, publisher.check)
        if shard is None:
            return
        start = time.monotonic()
        with collectives(f"grpo: step {step}", rank):
            metrics = learner.update(shard)
        metrics["seconds_learn"] = time.monotonic() - start
        done = step + 1
        if rank == 0:
            if done % job.config.grpo.save_every == 0 and done < job.steps:
                with checkpoints.write(done) as folder:
                    learner.save(folder / "model", job.model)
                    torch.save(learner.state(), folder / "trainer.pt")
            if done == job.steps:
                learner.save(run.stage_model("grpo"), job.model)
            metrics["seconds"] = time.monotonic() - before
            before = time.monotonic()
            wait_for(job.experience.report.remote(step, metrics), "grpo: report of a step", limits.call)
            probe = learner.score_probe(job.probes[-1], done) if job.probes else None
            publisher.publish(learner.learned_weights(), done, probe)
    publisher.wait()
