"""Groups of replies as one row of tokens, each prompt with its images once.

    [ prompt 0 with its images | reply 0 | reply 1 | .. | prompt 1 | reply 0 | .. ]

A reply sees its prompt and itself, never another reply (`group_attention`), and its positions go on from the prompt's
end: the result equals one row for each reply, at a fraction of the tokens. An image that occurs several times in the
batch is encoded once. With `shared=False` every reply gets a prompt and images of its own, as other trainers do it:
the reference for equality and speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hatch_ray.model.families import family_of
from hatch_ray.model.group_attention import GroupLayout, make_layout
from hatch_ray.model.prompt_tokens import ImagePatches, Prompt

Replies = Sequence[Sequence[int]]
"""Token ids of each reply to one prompt."""


@dataclass
class PackedBatch:
    """A row of T tokens with N scored ones.

    input_ids (1, T); position_ids (3, 1, T); layout: who sees whom; images: each one once; feature (F,): for each image
    token of the row, its place among the encoded patches of `images` in a row; predictor (N,): index of the token that
    predicts each scored token; target (N,) ids; reply (N,): the reply that each scored token belongs to, counted over
    the whole batch.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    layout: GroupLayout
    images: tuple[ImagePatches, ...]
    feature: torch.Tensor
    predictor: torch.Tensor
    target: torch.Tensor
    reply: torch.Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        moved = {name: part.to(device) for name, part in vars(self).items() if hasattr(part, "to")}
        return PackedBatch(**(vars(self) | moved))


def prompt_positions(model: nn.Module, token_ids: torch.Tensor, grids: torch.Tensor | None) -> torch.Tensor:
    """(3, P) rotary positions (time, height, width) of one prompt, by its family's rule."""
    return family_of(model.config).positions(model.model, token_ids, grids)


def pack(model: nn.Module, prompts: Sequence[Prompt], replies: Sequence[Replies], shared: bool = True) -> PackedBatch:
    """Pack each prompt with its replies (none empty). shared=False: one prompt, images too, for every reply."""
    if len(prompts) != len(replies) or not prompts:
        raise ValueError(f"{len(prompts)} prompts and {len(replies)} lists of replies")
    if not shared:
        prompts = [prompt for prompt, group in zip(prompts, replies, strict=True) for _ in group]
        replies = [[reply] for group in replies for reply in group]
    image_id = model.model.config.image_token_id
    ids, positions, predictor = [], [], []
    start = 0
    for prompt, group in zip(prompts, replies, strict=True):
        tokens = torch.tensor(prompt.token_ids)
        grids = _grids(prompt.images)
        ids.append(tokens)
        positions.append(prompt_positions(model, tokens, grids))
        end, following = start + len(tokens), int(positions[-1].max()) + 1
        last = end - 1
        for reply in group:
            tokens = torch.tensor(reply)
            assert len(tokens) > 0, "a reply has at least its end token"
            assert not (tokens == image_id).any(), "a reply holds an image token: the ban did not work"
            ids.append(tokens)
            positions.append((following + torch.arange(len(tokens))).expand(3, -1))
            predictor += [last, *range(end, end + len(tokens) - 1)]
            end += len(tokens)
        start = end
    flat = [reply for group in replies for reply in group]
    images, feature = _unique_images([image for prompt in prompts for image in prompt.images], model, once=shared)
    return PackedBatch(
        input_ids=torch.cat(ids)[None],
        position_ids=torch.cat(positions, dim=1)[:, None],
        layout=make_layout([len(prompt.token_ids) for prompt in prompts], [[len(r) for r in g] for g in replies]),
        images=images,
        feature=feature,
        predictor=torch.tensor(predictor),
        target=torch.tensor([token for reply in flat for token in reply]),
        reply=torch.repeat_interleave(torch.arange(len(flat)), torch.tensor([len(reply) for reply in flat])),
    )


def _grids(images: Sequence[ImagePatches]) -> torch.Tensor | None:
    return torch.tensor([image.grid for image in images]) if images else None


def _unique_images(
    images: Sequence[ImagePatches], model: nn.Module, once: bool
) -> tuple[tuple[ImagePatches, ...], torch.Tensor]:
    """Each image once (or every time), and for every image token the place of its feature."""
    merged = family_of(model.config).patches_per_token(vars(model.config.vision_config))
    places: dict[object, torch.Tensor] = {}
    unique: list[ImagePatches] = []
    feature, total = [], 0
    for number, image in enumerate(images):
        name: object = (image.key or id(image)) if once else number
        if name not in places:
            count = image.patches // merged
            places[name] = total + torch.arange(count)
            unique.append(image)
            total += count
        feature.append(places[name])
    return tuple(unique), torch.cat(feature) if feature else torch.zeros(0, dtype=torch.long)
