"""One worker's policy: the model that GRPO trains with its reference and optimizer, what engines are sent of it, and
how it is saved and taken up again.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from actors.runtime.messages import Probe, ProbeScores, Request, StoredImage
from actors.weights.probe_scores import score_probe
from actors.weights.publish import learned_parts, only_learned
from hatch_ray.config import Config
from hatch_ray.learning.trainer_state import (
    TrainerState,
    copied,
    load_state,
    make_optimizer,
    take_state,
    write_shards,
    write_state,
)
from hatch_ray.learning.workers import (
    Workers,
    final_weights,
    frozen_checksum,
    load_learning,
    save_trained,
    write_weights,
)
from hatch_ray.model.base import (
    banned_token_ids,
    eos_token_ids,
    load_processor,
)
from hatch_ray.model.kept_prompts import Unit
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.packing import PackedBatch
from hatch_ray.model.prompt_tokens import ImagePatches, Prompt, tokenize_prompt
from hatch_ray.run_folder import RunFolder

SCORING = ("distributions", "prompts", "replies")
"""The scorer's methods that compute with the model, beside its forward pass."""
BAD_IN_A_ROW = "bad_in_a_row"
"""In a checkpoint's numbers: how many of the last steps were skipped."""


class Policy:
    """Policy, reference and optimizer of one worker. `run` is the run's folder (config.run_dir where it is not given).

    Where the model is in shards (`workers.sharded`), all workers call each method that computes with it or reads it, at
    the same time. `bad_in_a_row` counts the last steps that were skipped.
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
        self.model = load_learning(self.workers, model, grpo.trainable, config.model.lora_rank)
        banned = banned_token_ids(
            self.processor, self.model.lm_head.out_features, eos_token_ids(self.model, self.processor)
        )
        self.reference: ReplyScorer | None = None
        if grpo.beta and not config.model.lora_rank:
            frozen = self.workers.load(model, learner.compute).requires_grad_(False)
            self.reference = ReplyScorer(frozen, grpo.temperature, banned, learner.compute)
            self.workers.shard(self.reference, SCORING, offload=learner.offload_reference)
            if self._moves_reference:
                self.reference.to("cpu")
        self.scorer = ReplyScorer(self.model, grpo.temperature, banned, learner.compute)
        self.workers.shard(self.scorer, SCORING)
        self.learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.workers.start_alike(self.learning)
        self.learned_parts = learned_parts(self.model)
        self.optimizer, self.scheduler = make_optimizer(self.learning, grpo, steps * grpo.updates_per_step)

    @torch.no_grad()
    def reference_logprobs(self, units: Sequence[Unit], packed: Sequence[PackedBatch]) -> dict[int, torch.Tensor]:
        """The reference's log-probabilities of each micro-batch by number, (N,) each; nothing where grpo.beta is 0."""
        if not self.config.grpo.beta:
            return {}
        if self.reference is None:
            from hatch_ray.model.lora import without_lora

            with without_lora(self.model):
                return _logprobs(self.scorer, units, packed)
        if self._moves_reference:
            self.reference.to(self.device)
        found = _logprobs(self.reference, units, packed)
        if self._moves_reference:
            self.reference.to("cpu")
        return found

    @property
    def _moves_reference(self) -> bool:
        return self.config.learner.offload_reference and not self.workers.sharded

    def score_probe(self, probe: Probe, version: int, with_blank: bool = False) -> ProbeScores:
        """What an engine with the present weights must answer; `with_blank`: to grey images too."""
        blank = self.tokenized(probe.blank) if with_blank else None
        return score_probe(self.scorer, probe, self.tokenized(probe.request), blank, version, self.config.precision)

    def tokenized(self, request: Request) -> Prompt:
        """A prompt's tokens and patches; the driver has processed its images."""
        return tokenize_prompt(self.processor, request.prompt, [self._image(image) for image in request.images])

    def _image(self, image: StoredImage) -> ImagePatches:
        if image.patches is None:
            raise ValueError(f"image {image.hash} came without patches; make its request with for_learner=True")
        with warnings.catch_warnings():  # the patches are read where they lie, in the object store
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            pixels = torch.from_numpy(ray.get(image.patches.ref, timeout=60))
        return ImagePatches(pixels, image.patches.grid, image.hash)

    def each_learned_weight(self) -> Iterable[tuple[str, torch.Tensor]]:
        """What an engine needs to become this version: the parts in which something learns, in the engine's dtype.

        Pair by pair, each made when it is asked for; of a sharded model all at once, in the CPU's memory of rank 0.
        """
        learned, dtype = only_learned(final_weights(self.model), self.learned_parts), self.config.rollout.dtype
        if self.workers.sharded:
            return self.workers.gathered(learned, dtype).items()
        return ((name, tensor.detach().to(getattr(torch, dtype))) for name, tensor in learned)

    def weights(self) -> dict[str, torch.Tensor]:
        """The full state dict: adapters merged, the head included. Of a sharded model on rank 0 alone."""
        return self.workers.gathered(final_weights(self.model))

    def frozen_checksum(self) -> str:
        """Of what grpo.trainable leaves as it is, this worker's part; empty where that is nothing."""
        return frozen_checksum(self.model, self.config.grpo.trainable)

    def save(self, out: Path, first: str | Path) -> None:
        """The policy as a Hugging Face folder; with LoRA the merged weights in a model like `first`."""
        save_trained(self.workers, self.model, first, self.config.learner.master, self.processor, out)

    def snapshot(self, first: str | Path) -> Callable[[Path], None]:
        """Copy weights and state in memory; what is returned writes them into a checkpoint's folder, in any thread."""
        if self._processor_to_save is None:  # a fast tokenizer may not be used by two threads at once
            self._processor_to_save = copy.deepcopy(self.processor)
        weights, state, processor = self._copied_weights(), self.state(), self._processor_to_save
        master = self.config.learner.master

        def write(folder: Path) -> None:
            write_weights(weights, self.model, first, master, processor, folder / "model")
            write_state(state, folder)

        return write

    def _copied_weights(self) -> dict[str, torch.Tensor]:
        """`weights`, as copies on the CPU; those that adapters are merged into are fresh, and made one by one."""
        if self.config.model.lora_rank:
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in final_weights(self.model)}
        return copied(self.weights())

    def write_together(self, folder: Path, first: str | Path) -> None:
        """Write a checkpoint's content: each worker of a sharded model its part, rank 0 the model for the engines."""
        more = {BAD_IN_A_ROW: self.bad_in_a_row}
        write_shards(self.workers, self.learning_by_name(), self.optimizer, self.scheduler, folder, more)
        self.save(folder / "model", first)

    def load(self, folder: Path) -> None:
        """Take over the state in a checkpoint's folder, whatever number of workers wrote it."""
        numbers = load_state(folder, self.learning_by_name(), self.optimizer, self.scheduler)
        self.bad_in_a_row = numbers[BAD_IN_A_ROW]

    def state(self) -> TrainerState:
        """A copy of what a resumed run needs beside the step (the order of the data follows from it)."""
        state = take_state(self.learning_by_name(), self.optimizer, self.scheduler)
        state.numbers[BAD_IN_A_ROW] = self.bad_in_a_row
        return state

    def learning_by_name(self) -> dict[str, torch.Tensor]:
        """What learns."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}


def _logprobs(scorer: ReplyScorer, units: Sequence[Unit], packed: Sequence[PackedBatch]) -> dict[int, torch.Tensor]:
    return {number: found for number, found, _ in scorer.each(units, packed) if number is not None}
