"""Samples become requests: chat text by the one prompt builder, images once into the object store, by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
import ray
from PIL import Image

from actors.runtime.messages import Request, StoredImage, StoredPatches
from actors.runtime.spans import Spans
from hatch_ray.config import Config, ConfigError
from hatch_ray.data.images import image_hash, image_size, shrunk_size
from hatch_ray.data.store import Redraws, Sampler, model_images
from hatch_ray.model.base import load_processor
from hatch_ray.model.prompt_tokens import process_image, prompt_length
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of

IMAGE_BYTES = 2 * 2**30
"""Pixels and patches kept in the object store for coming epochs; those of requests in flight are kept by their
references."""


class Questions:
    """What a GRPO stage asks, step by step."""

    def __init__(self, config: Config, maker: PromptMaker, sampler: Sampler, spans: Spans) -> None:
        """Raises ConfigError where grpo.redraw is set and the sampler has no others."""
        if config.grpo.redraw and not isinstance(sampler, Redraws):
            raise ConfigError(
                f"grpo.redraw={config.grpo.redraw}: {type(sampler).__name__}, the sampler of {config.system}, has no "
                "method `others` (docs/your-own-system.md); write it, or set grpo.redraw=0"
            )
        self.config, self.maker, self.sampler, self.spans = config, maker, sampler, spans
        self._prepared: tuple[int, list[Sample], list[Request]] | None = None

    def prepare(self, step: int) -> tuple[list[Sample], list[Request]]:
        """A step's samples and prompts, with their images in the object store; kept until another step is asked."""
        if self._prepared is None or self._prepared[0] != step:
            with self.spans.at(step, "prepare"):
                per_step = self.config.grpo.prompts_per_step
                samples = self.sampler.samples(step)
                if len(samples) != per_step:
                    raise RuntimeError(f"grpo: the sampler gave {len(samples)} samples for step {step}, not {per_step}")
                self._prepared = (step, samples, self._requests(samples, step))
        return self._prepared[1:]

    def others(self, step: int, draw: int, asked: Set[str], count: int) -> tuple[list[Sample], list[Request]]:
        """Up to `count` samples that a step has not asked (ids), and their prompts. draw: 1, 2, .. of the step."""
        assert isinstance(self.sampler, Redraws)
        with self.spans.at(step, "prepare"):
            samples = self.sampler.others(step, draw, asked, count)
            if len(samples) > count or not asked.isdisjoint(sample.id for sample in samples):
                raise RuntimeError(f"grpo: the sampler gave more than {count} others for step {step}, or asked ones")
            return samples, self._requests(samples, step, draw)

    def _requests(self, samples: Sequence[Sample], *draw: int) -> list[Request]:
        """draw: the step, and which of its draws from the second on; all seeds follow from it."""
        seeds = np.random.SeedSequence([self.config.seed, *draw]).generate_state(len(samples))
        return [self.maker.request(sample, int(seed)) for sample, seed in zip(samples, seeds, strict=True)]


class PromptMaker:
    """Makes requests for the engines, and with `for_learner` the images' patches beside their pixels.

    It keeps references by content hash: an image is read, processed and stored once while it is remembered. `processed`
    counts the images that were processed, `unique` the different ones. stage: how the model is asked.
    """

    def __init__(self, config: Config, model: str | Path, stage: str = "grpo", for_learner: bool = False) -> None:
        self.config, self.stage = config, stage
        self.system = system_of(config)
        self.processor = load_processor(model, config.model.max_pixels)
        self.for_learner = for_learner
        self.processed = 0
        self._seen: set[str] = set()
        self._samples: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._images: OrderedDict[str, tuple[StoredImage, int]] = OrderedDict()
        self._bytes = 0

    @property
    def unique(self) -> int:
        """Different images met so far."""
        return len(self._seen)

    def request(self, sample: Sample, seed: int = 0) -> Request:
        """The request for one sample. Raises ValueError when an image cannot be read."""
        text, hashes = self._samples.get(sample.id, ("", ()))
        if not text or any(name not in self._images for name in hashes):
            text = self.text(sample)
            images = model_images(sample, self.config.model.max_pixels)
            hashes = tuple(image_hash(image) for image in images)
            stored = tuple(self._stored(name, image) for name, image in zip(hashes, images, strict=True))
            self._samples[sample.id] = (text, hashes)
        else:
            stored = tuple(self._images[name][0] for name in hashes)
        for name in hashes:
            self._images.move_to_end(name)
        self._forget()
        return Request(sample.id, text, stored, seed)

    def text(self, sample: Sample) -> str:
        """Chat text with one placeholder for each image, up to the assistant's turn."""
        messages = self.system.prompt(sample, self.stage)
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def _stored(self, name: str, image: Image.Image) -> StoredImage:
        if name not in self._images:
            pixels = np.asarray(image)
            patches, size = None, pixels.nbytes
            if self.for_learner:
                made = process_image(self.processor, image)
                values = made.pixels.numpy()
                patches, size = StoredPatches(ray.put(values), made.grid), size + values.nbytes
                self.processed += 1
                self._seen.add(name)
            self._images[name] = StoredImage(name, ray.put(pixels), patches), size
            self._bytes += size
        return self._images[name][0]

    def _forget(self) -> None:
        while self._bytes > IMAGE_BYTES and len(self._images) > self.config.model.max_images:
            self._bytes -= self._images.popitem(last=False)[1][1]

    def check_length(self, samples: Sequence[Sample], max_new_tokens: int) -> None:
        """Raise ConfigError when a prompt with a full reply may not fit into the context.

        Every text is tokenised; images are counted by the sizes in their files' headers.
        """
        sizes: dict[Path, tuple[int, int]] = {}
        longest, name = 0, ""
        for sample in samples:
            paths = [view.image_path for view in sample.views]
            for path in paths:
                if path not in sizes:
                    sizes[path] = shrunk_size(*image_size(path), self.config.model.max_pixels)
            length = prompt_length(self.processor, self.text(sample), [sizes[path] for path in paths])
            if length > longest:
                longest, name = length, sample.id
        if longest + max_new_tokens > self.config.model.max_length:
            raise ConfigError(
                f"the prompt of sample {name} has {longest} tokens; with {max_new_tokens} new ones it exceeds model."
                f"max_length={self.config.model.max_length}: raise that, or lower max_new_tokens or model.max_pixels"
            )
