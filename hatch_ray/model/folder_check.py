"""Is a model folder whole, before anything is loaded? Tensors by name and shape, finite numbers, the files beside.

transformers fills what is missing with random numbers and goes on; here it is refused. No torch is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hatch_ray.model.source import check_kind, folder_kind
from hatch_ray.model.tensors import tensor_files, tensor_shapes

COPY = "copy it from the model that this one came from"
NAMED = 3
"""Tensors that a message names."""
BESIDE: dict[str, tuple[tuple[str, ...], ...]] = {
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "preprocessor config": (("preprocessor_config.json",), ("processor_config.json",)),
    "generation config": (("generation_config.json",),),
}
"""What a folder needs beside weights: any of these sets of files."""
EXTRA = ("rotary_emb.inv_freq",)
"""Endings of tensors that older versions wrote and no model has."""
PREFIXES = {
    "module.": "saved from DistributedDataParallel's wrapper; save model.module",
    "_orig_mod.": "saved from torch.compile's wrapper; save model._orig_mod",
    "base_model.model.": "a LoRA adapter with its wrapper; merge it first (merge_and_unload)",
    "_fsdp_wrapped_module.": "saved from FSDP's wrapper; save the full state dict",
}
MEGABYTE = 2**20
EXPONENTS = {"F64": (np.uint64, 0x7FF0 << 48), "F32": (np.uint32, 0x7F800000), "BF16": (np.uint16, 0x7F80),
             "F16": (np.uint16, 0x7C00)}  # fmt: skip
"""Bits that are all set in NaN and infinity."""


def check_model_folder(folder: Path, finite: bool = True) -> None:
    """Raise ValueError, one line with the folder, the names, the likely cause and the fix, unless the folder is whole.

    finite: read every weight and refuse NaN and infinity (about a second for each GB).
    """
    check_kind(folder, folder_kind(folder))
    check_tensors(folder)
    _check_beside(folder)
    if finite:
        for path in tensor_files(folder):
            status = path.stat()
            name = first_not_finite(path, status.st_size, status.st_mtime_ns)
            if name is not None:
                raise ValueError(
                    f"model {folder} holds NaN or infinity: {name} in {path.name}; take the weights from before that, "
                    "or copy them again"
                )


def _check_beside(folder: Path) -> None:
    for what, choices in BESIDE.items():
        if not any(all((folder / name).is_file() for name in names) for names in choices):
            expected = " or ".join(" and ".join(names) for names in choices)
            raise ValueError(
                f"model {folder} has no {what} ({expected}); copy it from the model that this one came from"
            )
    if not ((folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file()):
        try:
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            settings = {}
        if not (isinstance(settings, dict) and settings.get("chat_template")):
            raise ValueError(
                f"model {folder} has no chat template (chat_template.jinja, or in tokenizer_config.json); {COPY}"
            )


def check_tensors(folder: Path) -> None:
    """Raise ValueError unless the weight files hold what config.json asks for, by name and shape."""
    missing_files = [path.name for path in tensor_files(folder) if not path.is_file()]
    if missing_files:
        raise ValueError(f"model {folder} lacks {_listed(missing_files)} of its weights; copy the whole folder again")
    found = tensor_shapes(folder)
    if not found:
        raise ValueError(f"model {folder} has no .safetensors files (weights in other formats are not read)")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        wanted = qwen_shapes(config)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{folder / 'config.json'} is not a Qwen2.5-VL's config: {error} is missing or wrong"
        ) from None
    given = {plain_name(name): (name, shape) for name, shape in found.items() if not name.endswith(EXTRA)}
    tied = config.get("tie_word_embeddings", (config.get("text_config") or {}).get("tie_word_embeddings", False))
    missing = [name for name in wanted if name not in given and not (tied and name == "lm_head.weight")]
    unexpected = [given[name][0] for name in given if name not in wanted]
    shaped = [
        f"{given[name][0]} is {_shape(given[name][1])}, config.json says {_shape(shape)}"
        for name, shape in wanted.items()
        if name in given and given[name][1] != shape
    ]
    if not (missing or unexpected or shaped):
        return
    prefix = next((start for start in PREFIXES if unexpected and unexpected[0].startswith(start)), None)
    cause = PREFIXES[prefix] if prefix else "another model's config.json, or an incomplete copy; copy the folder again"
    faults = [f"{len(missing)} tensors are missing ({_listed(missing)})"] if missing else []
    faults += [f"{len(unexpected)} are unexpected ({_listed(unexpected)})"] if unexpected else []
    faults += [f"{len(shaped)} have another shape ({_listed(shaped)})"] if shaped else []
    raise ValueError(f"model {folder}: {', '.join(faults)}: {cause}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", .." if len(names) > NAMED else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def plain_name(name: str) -> str:
    """A tensor's name as the published files have it: newer ones write model.visual. and model.language_model."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1) if name.startswith("model.language_model.") else name


def qwen_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a Qwen2.5-VL with this config.json. Raises KeyError for an absent size."""
    text, vision = config.get("text_config") or config, config["vision_config"]
    wide, vocabulary = int(text["hidden_size"]), int(text["vocab_size"])
    shapes = {"model.embed_tokens.weight": (vocabulary, wide), "model.norm.weight": (wide,)}
    for layer in range(int(text["num_hidden_layers"])):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _text_layer(text)}
    eye = int(vision["hidden_size"])
    patch, merge = int(vision.get("patch_size", 14)), int(vision.get("spatial_merge_size", 2))
    channels = int(vision.get("in_channels", vision.get("in_chans", 3)))
    shapes["visual.patch_embed.proj.weight"] = (eye, channels, int(vision.get("temporal_patch_size", 2)), patch, patch)
    for block in range(int(vision["depth"])):
        shapes |= {f"visual.blocks.{block}.{name}": shape for name, shape in _vision_block(vision)}
    merged = eye * merge**2
    shapes |= {"visual.merger.ln_q.weight": (eye,), "visual.merger.mlp.0.weight": (merged, merged),
               "visual.merger.mlp.0.bias": (merged,), "visual.merger.mlp.2.weight": (wide, merged),
               "visual.merger.mlp.2.bias": (wide,)}  # fmt: skip
    return shapes | {"lm_head.weight": (vocabulary, wide)}


def _text_layer(text: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    wide, inner, heads = (int(text[key]) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head = wide // heads
    sizes = {"q": wide, "k": head * int(text.get("num_key_value_heads") or heads)}
    for letter, size in {**sizes, "v": sizes["k"]}.items():
        yield f"self_attn.{letter}_proj.weight", (size, wide)
        yield f"self_attn.{letter}_proj.bias", (size,)
    yield "self_attn.o_proj.weight", (wide, wide)
    for name, shape in {"gate": (inner, wide), "up": (inner, wide), "down": (wide, inner)}.items():
        yield f"mlp.{name}_proj.weight", shape
    yield "input_layernorm.weight", (wide,)
    yield "post_attention_layernorm.weight", (wide,)


def _vision_block(vision: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    eye, inner = int(vision["hidden_size"]), int(vision["intermediate_size"])
    layers = {"attn.qkv": (3 * eye, eye), "attn.proj": (eye, eye), "mlp.gate_proj": (inner, eye),
              "mlp.up_proj": (inner, eye), "mlp.down_proj": (eye, inner)}  # fmt: skip
    for name, shape in layers.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]
    yield "norm1.weight", (eye,)
    yield "norm2.weight", (eye,)


@lru_cache(maxsize=256)
def first_not_finite(path: Path, size: int, changed_ns: int) -> str | None:
    """The first tensor of a safetensors file that holds NaN or infinity. size, changed_ns: of the file as it is now."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
        for name, entry in header.items():
            if name == "__metadata__" or entry["dtype"] not in EXPONENTS:
                continue
            kind, exponent = EXPONENTS[entry["dtype"]]
            begin, end = entry["data_offsets"]
            file.seek(8 + header_size + begin)
            left = end - begin
            while left > 0:
                bits = np.frombuffer(file.read(min(left, 32 * MEGABYTE)), dtype=kind)
                if not bits.size:
                    break
                left -= bits.nbytes
                mask = kind(exponent)
                if ((bits & mask) == mask).any():
                    return str(name)
    return None
