"""Is a model folder whole, before anything is loaded? Tensors by name and shape, finite numbers, the files beside.

transformers fills what is missing with random numbers and goes on; here it is refused. No torch is imported.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from hatch_ray.model.families import family_of_kind
from hatch_ray.model.families.family import is_tied
from hatch_ray.model.source import folder_kind
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
    family_of_kind(folder, folder_kind(folder))
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
    family = family_of_kind(folder, config.get("model_type"))
    try:
        wanted = family.tensors(config)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{folder / 'config.json'} is not a {family.name}'s config: {error} is missing or wrong"
        ) from None
    given = {plain_name(name): (name, shape) for name, shape in found.items() if not name.endswith(EXTRA)}
    missing = [name for name in wanted if name not in given and not (is_tied(config) and name == "lm_head.weight")]
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
    """A tensor's name in the oldest published form: newer files write model.visual. and model.language_model."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1) if name.startswith("model.language_model.") else name


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
