"""What a family of vision-language models must say of itself, and what both of ours have in common.

The first half is known from config.json alone and imports no torch; the second computes with a loaded model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from hatch_ray.model.shapes import Shapes

if TYPE_CHECKING:
    import torch

    from hatch_ray.model.group_attention import Layout

Json = Mapping[str, Any]
"""A config.json, or a section of one."""
Tensors = dict[str, tuple[int, ...]]
"""Name -> shape."""


class Family(ABC):
    """One architecture.

    kind       transformers' `model_type`; the image encoder's is `kind`_vision.
    name       what people call it.
    published  config.json of its published models, as far as sizes follow from it.
    patch      pixels a side of a patch, where config.json does not say.
    """

    kind: ClassVar[str]
    name: ClassVar[str]
    published: ClassVar[Mapping[str, Json]]
    patch: ClassVar[int]

    @abstractmethod
    def layer(self, text: Json) -> Tensors:
        """The tensors of a language layer. Raises KeyError for an absent size, as all of this half."""

    @abstractmethod
    def block(self, vision: Json) -> Tensors:
        """The tensors of a block of the image encoder."""

    @abstractmethod
    def around(self, vision: Json) -> Tensors:
        """The encoder's other tensors: the patches' projection, positions, mergers (called so)."""

    @abstractmethod
    def particulars(self, text: Json, vision: Json) -> dict[str, Any]:
        """The `Shapes` that are this family's own: head, full, window, qk_norm, gated_eye, mergers."""

    def tensors(self, config: Json) -> Tensors:
        """Every tensor of a model with this config.json, under the name that `plain_name` gives it."""
        text, vision = sections(config)
        wide, vocabulary = int(text["hidden_size"]), int(text["vocab_size"])
        layers, blocks = (range(int(count)) for count in (text["num_hidden_layers"], vision["depth"]))
        layer, block = self.layer(text), self.block(vision)
        return (
            {"model.embed_tokens.weight": (vocabulary, wide), "model.norm.weight": (wide,)}
            | {f"model.layers.{number}.{name}": shape for number in layers for name, shape in layer.items()}
            | {f"visual.blocks.{number}.{name}": shape for number in blocks for name, shape in block.items()}
            | {f"visual.{name}": shape for name, shape in self.around(vision).items()}
            | {"lm_head.weight": (vocabulary, wide)}
        )

    def shapes(self, config: Json) -> Shapes:
        """The sizes in a config.json."""
        text, vision = sections(config)
        counts = {name: math.prod(shape) for name, shape in self.tensors(config).items()}

        def count(part: str) -> int:
            return sum(size for name, size in counts.items() if part in name)

        mergers = count("merger")
        return Shapes(
            wide=int(text["hidden_size"]),
            heads=int(text["num_attention_heads"]),
            kv_heads=kv_heads(text),
            inner=int(text["intermediate_size"]),
            layers=int(text["num_hidden_layers"]),
            vocabulary=int(text["vocab_size"]),
            tied=is_tied(config),
            eye=int(vision["hidden_size"]),
            eye_heads=int(vision["num_heads"]),
            eye_inner=int(vision["intermediate_size"]),
            depth=int(vision["depth"]),
            patch=int(vision.get("patch_size", self.patch)),
            merge=int(vision.get("spatial_merge_size", 2)),
            patch_values=math.prod(self.patch_shape(vision)),
            layer=count("model.layers.0."),
            block=count("visual.blocks.0."),
            merger=mergers,
            patch_embedding=count("visual.") - count("visual.blocks.") - mergers,
            **self.particulars(text, vision),
        )

    def patch_shape(self, vision: Json) -> tuple[int, int, int, int]:
        """Channels, frames, height and width of a patch."""
        channels, side = vision.get("in_channels", vision.get("in_chans", 3)), int(vision.get("patch_size", self.patch))
        return int(channels), int(vision.get("temporal_patch_size", 2)), side, side

    def patches_per_token(self, vision: Json) -> int:
        """Patches that the encoder's merger makes one token of."""
        return int(vision.get("spatial_merge_size", 2)) ** 2

    def shares_prefixes(self, text: Json) -> bool:
        """Whether a prompt can be computed once for all of its replies: every layer attends to all that came before."""
        return set(text.get("layer_types") or ("full_attention",)) == {"full_attention"}

    # --- with a loaded model --------------------------------------------------------------------------------------

    def positions(self, core: Any, token_ids: torch.Tensor, grids: torch.Tensor | None) -> torch.Tensor:
        """(3, P) rotary positions (time, height, width) of one prompt (P,), by the model's own rule. core: its `model`;
        grids (images, 3)."""
        types = (token_ids == core.config.image_token_id).int()
        positions, _ = core.get_rope_index(token_ids[None], types[None], image_grid_thw=grids)
        found: torch.Tensor = positions[:, 0]
        return found

    def encode(self, visual: Any, pixels: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """What the language model is given of images, (merged patches of all, levels * d): the levels side by side, the
        one that takes the image tokens' places first. pixels (patches, values); grids (images, 3)."""
        features: torch.Tensor = visual(pixels, grid_thw=grids).pooler_output
        return features

    def deeper(self, where: torch.Tensor, levels: list[torch.Tensor]) -> dict[str, Any]:
        """How the language model takes the further levels, (image tokens, d) each, of `encode`."""
        assert not levels, f"{self.name} gives its language model one level"
        return {}

    def language(
        self,
        core: Any,
        embedded: torch.Tensor,
        position_ids: torch.Tensor,
        layout: Layout,
        seen: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """(1, T, d): the last hidden state of a packed row. A model that cannot share prefixes computes a row a reply:
        ValueError where the layout has several replies to a prompt.

        embedded (1, T, d), position_ids (3, 1, T). seen, where there are images: which tokens are theirs (1, T) bool,
        and what these stand for, (image tokens, levels * d).
        """
        from hatch_ray.model.group_attention import GroupLayout, separate_rows

        levels: list[torch.Tensor] = []
        if seen is not None:
            first, *levels = seen[1].split(embedded.shape[-1], dim=-1)
            embedded = embedded.masked_scatter(seen[0][..., None], first)
        there = None
        more: dict[str, Any] = {"layout": layout}
        if not self.shares_prefixes(vars(core.language_model.config)):
            assert isinstance(layout, GroupLayout), "prompts pass before their replies where they are shared"
            index, there = separate_rows(layout)
            embedded, position_ids = embedded[0, index], position_ids[:, 0, index]
            more = {"attention_mask": there.long()}
        if seen is not None:
            more |= self.deeper(seen[0] if there is None else seen[0][0, index] & there, levels)
        hidden: torch.Tensor = core.language_model(
            inputs_embeds=embedded, position_ids=position_ids, use_cache=False, **more
        ).last_hidden_state
        return hidden if there is None else hidden[there][None]


def sections(config: Json) -> tuple[Json, Json]:
    """The language model's sizes and the image encoder's; the former stand at the top of older files."""
    return config.get("text_config") or config, config["vision_config"]


def kv_heads(text: Json) -> int:
    return int(text.get("num_key_value_heads") or text["num_attention_heads"])


def is_tied(config: Json) -> bool:
    """Whether head and embedding are one tensor."""
    text, _ = sections(config)
    return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))


def linear(name: str, out: int, into: int, bias: bool = True) -> Tensors:
    """The tensors of a linear map."""
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def attention(wide: int, queries: int, keys: int, bias: bool) -> Tensors:
    """The linear maps of a language layer's attention; its output's map has no bias in any of our families."""
    maps = linear("self_attn.o_proj", wide, queries, bias=False)
    for letter, size in (("q", queries), ("k", keys), ("v", keys)):
        maps |= linear(f"self_attn.{letter}_proj", size, wide, bias)
    return maps


def gated_mlp(wide: int, inner: int, bias: bool) -> Tensors:
    """gate, up and down."""
    return (
        linear("mlp.gate_proj", inner, wide, bias)
        | linear("mlp.up_proj", inner, wide, bias)
        | linear("mlp.down_proj", wide, inner, bias)
    )
