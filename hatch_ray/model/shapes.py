"""The sizes of a model, of whatever family; memory follows from them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shapes:
    """The sizes of a model. Names after `eye` are the image encoder's. Counts of parameters are of one layer or part.

    wide, heads, kv_heads, inner, layers, vocabulary: of the language model, `head` the width of a head; qk_norm: it
    norms queries and keys. eye, eye_heads, eye_inner, depth: of the encoder, `full` blocks of which look at a whole
    image and the others at windows of `window` patches a side; gated_eye: its MLPs have three maps, else two.
    mergers: how many levels of features it gives; merger: the parameters of all of them.
    """

    wide: int
    heads: int
    kv_heads: int
    head: int
    qk_norm: bool
    inner: int
    layers: int
    vocabulary: int
    tied: bool
    eye: int
    eye_heads: int
    eye_inner: int
    gated_eye: bool
    depth: int
    full: int
    window: int
    patch: int
    merge: int
    mergers: int
    patch_values: int
    layer: int
    block: int
    merger: int
    patch_embedding: int

    @property
    def attended(self) -> int:
        """Width of all heads together; `wide` in some families."""
        return self.heads * self.head

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding, and of the head beside it where it is not tied."""
        return self.vocabulary * self.wide

    @property
    def vision(self) -> int:
        """Parameters of the image encoder, its merger included."""
        return self.patch_embedding + self.depth * self.block + self.merger

    @property
    def language(self) -> int:
        """Parameters of everything else."""
        return self.layers * self.layer + self.wide + self.embedding * (1 if self.tied else 2)

    @property
    def linear(self) -> int:
        """Parameters of the language layers' linear maps, biases left out: what adapters are added to."""
        kv = self.kv_heads * self.head
        return self.layers * (2 * self.wide * (self.attended + kv) + 3 * self.wide * self.inner)

    @property
    def parameters(self) -> int:
        return self.language + self.vision

    def part(self, trainable: str) -> int:
        """Parameters of "all", "language" or "vision"."""
        return {"all": self.parameters, "language": self.language, "vision": self.vision}[trainable]

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA adapters of this rank on the language layers' linear maps (`model/lora.py`)."""
        kv = self.kv_heads * self.head
        ends = 2 * (self.wide + self.attended) + 2 * (self.wide + kv) + 3 * (self.wide + self.inner)
        return self.layers * rank * ends

    def patches(self, max_pixels: int) -> int:
        """Most patches of an image of so many pixels, a whole number of merged ones."""
        unit = (self.patch * self.merge) ** 2
        return max_pixels // unit * self.merge**2

    def image_tokens(self, max_pixels: int) -> int:
        """Most tokens of such an image in the prompt."""
        return self.patches(max_pixels) // self.merge**2
