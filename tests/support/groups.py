"""Prompt groups as the learner gets them: real prompts over images, made-up replies."""

import numpy as np
import torch

from actors.reward.verifier import make_groups
from actors.runtime.messages import Reply, Request, Rollout, StoredImage, StoredPatches
from hatch_ray.data.images import image_hash
from hatch_ray.model.base import load_processor
from hatch_ray.model.prompt_tokens import process_image
from hatch_ray.protocol.prompt import build_prompt
from tests.support.pictures import photo


def store(ray, processor, image):
    patches = process_image(processor, image)
    in_store = StoredPatches(ray.put(patches.pixels.numpy()), patches.grid)
    return StoredImage(image_hash(image), ray.put(np.asarray(image)), in_store)


def make_batch(ray, tiny_model, version=-1):
    """Two groups of four made-up replies."""
    processor = load_processor(tiny_model, 112 * 112)
    generator = torch.Generator().manual_seed(0)
    requests, rollouts = [], []
    for index in range(2):
        images = [photo(2 * index), photo(2 * index + 1)]
        messages = build_prompt("How far?", 2, "number", "actions", "compact-v1")
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        stored = tuple(store(ray, processor, image) for image in images)
        requests.append(Request(str(index), text, stored))
        replies = []
        for length in (3, 7, 5, 2 + 4 * index):
            ids = torch.randint(0, 1000, (length,), generator=generator)
            replies.append(Reply(tuple(ids.tolist()), "", np.full(length, -7.3, np.float32), True))
        inputs = processor(text=[text], images=images, return_tensors="pt")
        rollouts.append(Rollout(tuple(replies), version, inputs["input_ids"].shape[1]))
    totals = [0.0, 1.0, 3.0, 2.0, 1.0, 0.0, 0.5, 2.0]
    return make_groups(requests, rollouts, [{"terms": {"total": total}} for total in totals])
