"""The policy: a model of a known family and its processor, from a folder, a Hugging Face name or "hatch-tiny".

Every stage loads and saves through here, so a stage's result is always a complete Hugging Face folder (weights,
tokenizer, chat template, image settings) that `from_pretrained` and `vllm serve` open without this project.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xxhash
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.initialization import no_init_weights

from hatch_ray.disk import replace_folder, when_there_is_room
from hatch_ray.model.families import family_of_kind
from hatch_ray.model.folder_check import check_tensors
from hatch_ray.model.source import model_source

if TYPE_CHECKING:  # a GPU without the rest of the environment can compute with this (`bench/gpu.sh`)
    from hatch_ray.config_sections import Precision

BAN_BIAS = -100.0
"""Added to a banned token's logit, by vLLM when it samples and by the learner when it scores: exp(-100) is nothing in
float32 and bfloat16, and both sides then normalise over the same vocabulary."""

Part = Literal["all", "vision", "language"]
"""Which weights learn: "vision" is the image encoder with its mergers, "language" everything else."""


def load_model(base: str | Path, dtype: str = "float32") -> Any:
    """The model in training mode is the caller's wish; it comes in eval mode, on the CPU.

    Raises ValueError when its family is not known, or a folder is not whole.
    """
    source = model_source(base)
    family_of_kind(base, AutoConfig.from_pretrained(source).model_type)
    if Path(source).is_dir():
        check_tensors(Path(source))
    model, found = AutoModelForImageTextToText.from_pretrained(
        source, dtype=getattr(torch, dtype), attn_implementation="sdpa", use_safetensors=True, output_loading_info=True
    )
    # A name of the hub has no folder to check before.
    if wrong := [*found["missing_keys"], *found["unexpected_keys"], *found["mismatched_keys"]]:
        named = ", ".join(map(str, sorted(wrong, key=str)[:3]))
        raise ValueError(f"model.base={base}: {len(wrong)} tensors are missing or unexpected ({named}, ..)")
    return model


def unfilled_model(base: str | Path, dtype: str) -> Any:
    """The model without its values, whose memory is not touched until somebody writes to it: another process has them.

    In eval mode, on the CPU, like `load_model`'s.
    """
    source = model_source(base)
    config = AutoConfig.from_pretrained(source)
    family_of_kind(base, config.model_type)
    with no_init_weights():
        made = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
        model = made.eval()
    model.tie_weights()  # a head that is the embedding: it was not initialised, which would have tied it
    with suppress(OSError):  # a folder without the file: what follows from config.json stays, as in `from_pretrained`
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model


def recompute_activations(model: Any, wanted: bool | None, device: torch.device) -> None:
    """Let each layer and vision block compute its activations again in the backward pass (learner.recompute)."""
    if device.type != "cpu" if wanted is None else wanted:
        model.gradient_checkpointing_enable({"use_reentrant": False})


def computing(model: Any, compute: Precision, device: torch.device) -> torch.autocast:
    """A pass within it has its matrix products in `compute`, whatever the weights are. Copies of weights are kept for
    the whole pass, but of layers that are computed again only while one is at work."""
    again = bool(model.is_gradient_checkpointing)
    return torch.autocast(device.type, torch.bfloat16, enabled=compute == "bfloat16", cache_enabled=not again)


def load_processor(base: str | Path, max_pixels: int | None = None) -> Any:
    """Tokenizer and image processor. `max_pixels` lowers the image size above which the processor shrinks."""
    processor = AutoProcessor.from_pretrained(model_source(base))
    if max_pixels is not None:
        limit_pixels(processor, max_pixels)
    return processor


def limit_pixels(processor: Any, max_pixels: int) -> None:
    """Set the processor's upper image size, in place; it is written to disk with the model."""
    size = processor.image_processor.size
    if max_pixels < size["shortest_edge"]:
        raise ValueError(f"model.max_pixels={max_pixels} is below the processor's smallest, {size['shortest_edge']}")
    processor.image_processor.size = {
        "shortest_edge": size["shortest_edge"],
        "longest_edge": min(size["longest_edge"], max_pixels),
    }


def pixel_size(processor: Any) -> dict[str, int]:
    """The processor's {shortest_edge, longest_edge} in pixels, as vLLM's `mm_processor_kwargs` wants it."""
    size = processor.image_processor.size
    return {"shortest_edge": int(size["shortest_edge"]), "longest_edge": int(size["longest_edge"])}


def save_model(model: Any, processor: Any, out: Path, weights: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write a complete Hugging Face folder: into a temporary folder beside `out`, then renamed.

    weights: a state dict to write instead of the model's own. Waits while the disk is full (`hatch_ray.disk`).
    """
    out = Path(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")

    def write() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            model.save_pretrained(temporary, state_dict=None if weights is None else dict(weights))
            processor.save_pretrained(temporary)
            replace_folder(temporary, out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    when_there_is_room(out, write)
    return out


def is_vision(name: str) -> bool:
    """Whether a parameter belongs to the image encoder (its mergers included)."""
    return "visual." in name


def set_trainable(model: torch.nn.Module, part: Part) -> list[str]:
    """Freeze everything but `part`; returns the names that learn."""
    names = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad = part == "all" or (part == "vision") == is_vision(name)
        if parameter.requires_grad:
            names.append(name)
    return names


def any_learns(module: torch.nn.Module) -> bool:
    """Whether something of a module learns."""
    return any(parameter.requires_grad for parameter in module.parameters())


def checksum(arrays: Mapping[str, torch.Tensor | np.ndarray] | Iterable[tuple[str, torch.Tensor | np.ndarray]]) -> str:
    """XXH3 over names and bytes, in the order of names: equal weights give equal text on every machine."""
    items = arrays.items() if isinstance(arrays, Mapping) else arrays
    digest = xxhash.xxh3_64()
    for name, array in sorted(items, key=lambda item: item[0]):
        if isinstance(array, torch.Tensor):
            array = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def part_checksum(model: torch.nn.Module, part: Part) -> str:
    """`checksum` of the weights of one part: proof of what a stage left alone."""
    return checksum(
        (name, tensor)
        for name, tensor in model.state_dict().items()
        if part == "all" or (part == "vision") == is_vision(name)
    )


def eos_token_ids(model_or_folder: Any, processor: Any) -> list[int]:
    """Tokens that end a reply: the generation config's, and the tokenizer's."""
    if isinstance(model_or_folder, (str, Path)):
        config = GenerationConfig.from_pretrained(model_source(model_or_folder))
    else:
        config = model_or_folder.generation_config
    listed = config.eos_token_id
    ids = set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    ids.add(processor.tokenizer.eos_token_id)
    return sorted(ids)


def banned_token_ids(processor: Any, vocab_size: int, eos_ids: Iterable[int]) -> list[int]:
    """Tokens that a reply may never contain.

    They are all special tokens but the ends of a reply (an image placeholder in a reply breaks the learner: "Image
    features and image tokens do not match"), and the ids of the head that have no token.

    vocab_size: width of the model's head, which is often larger than the tokenizer.
    """
    tokenizer = processor.tokenizer
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= {processor.image_token_id, processor.video_token_id}
    unused = set(range(vocab_size)) - set(tokenizer.get_vocab().values())
    return sorted((special | unused) - set(eos_ids))
