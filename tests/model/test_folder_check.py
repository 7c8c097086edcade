"""A model folder that is not whole is refused in one line before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration

from actors.stages.dry_run import describe
from hatch_ray.config import make_config
from hatch_ray.model.base import load_model
from hatch_ray.model.families import FAMILIES
from hatch_ray.model.folder_check import check_model_folder, plain_name

HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
Weights = dict[str, torch.Tensor]


def weights(change: Callable[[Weights], Weights]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path)

    return spoil


def renamed(prefix: str) -> Callable[[Path], object]:
    return weights(lambda found: {prefix + name: tensor for name, tensor in found.items()})


def without(*names: str) -> Callable[[Path], object]:
    return weights(lambda found: {name: tensor for name, tensor in found.items() if name not in names})


def spoilt(value: float, dtype: torch.dtype = torch.float32) -> Callable[[Path], object]:
    def change(found: Weights) -> Weights:
        found = {name: tensor.to(dtype) for name, tensor in found.items()}
        found["model.norm.weight"][3] = value
        return found

    return weights(change)


def lost_shard(folder: Path) -> None:
    Qwen2_5_VLForConditionalGeneration.from_pretrained(folder).save_pretrained(folder, max_shard_size="1MB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("chat_template", None)
    path.write_text(json.dumps(settings))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "wrapped": (
        renamed("module."),
        r"are missing \(model\.embed_tokens.*unexpected \(module\..*DistributedDataParallel",
    ),
    "compiled": (renamed("_orig_mod."), r"unexpected \(_orig_mod\..*torch\.compile"),
    "adapter": (renamed("base_model.model."), r"merge it first"),
    "one left out": (without("model.norm.weight"), r"1 tensors are missing \(model\.norm\.weight\): .*copy the folder"),
    "no head": (without(HEAD), r"1 tensors are missing \(lm_head\.weight\)"),
    "one more": (
        weights(lambda found: found | {"extra.weight": torch.zeros(2)}),
        r"1 are unexpected \(extra\.weight\)",
    ),
    "another shape": (
        weights(lambda found: found | {EMBEDDINGS: found[EMBEDDINGS][:-1].contiguous()}),
        r"model\.embed_tokens\.weight is 1151x192, config\.json says 1152x192",
    ),
    "nan": (spoilt(float("nan")), r"NaN or infinity: model\.norm\.weight in model\.safetensors"),
    "infinity, bfloat16": (spoilt(float("inf"), torch.bfloat16), r"NaN or infinity: model\.norm\.weight"),
    "lost shard": (lost_shard, r"lacks model-00002-of-\d+\.safetensors of its weights"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"no tokenizer \(tokenizer\.json or vocab"),
    "no template": (no_template, r"no chat template"),
    "no preprocessor": (lambda folder: (folder / "preprocessor_config.json").unlink(), r"no preprocessor config"),
    "no generation config": (lambda folder: (folder / "generation_config.json").unlink(), r"no generation config"),
    "no sizes": (lambda folder: (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}'), r"vision_config"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_whole_is_refused_by_the_dry_run(tiny_model: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    spoil, said = FAULTS[fault]
    spoil(folder)
    with pytest.raises(ValueError, match=said) as refused:
        describe(make_config({"model": {"base": str(folder)}}), Console(quiet=True))
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_what_is_loaded_is_checked_too(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    without("model.norm.weight")(folder)
    with pytest.raises(ValueError, match=r"missing \(model\.norm\.weight\)"):
        load_model(folder)


def test_tied_heads_and_known_buffers_may_lack_or_be_there(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights(lambda found: {name: tensor for name, tensor in found.items() if name != HEAD} | {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32)
    })(folder)  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    check_model_folder(folder)


VISION = {"depth": 2, "hidden_size": 128, "intermediate_size": 344, "num_heads": 4, "out_hidden_size": 256,
          "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
TEXT = {"hidden_size": 256, "intermediate_size": 600, "num_attention_heads": 8, "num_key_value_heads": 2,
        "num_hidden_layers": 3, "vocab_size": 500}  # fmt: skip
OWN: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "qwen2_5_vl": ({}, {"in_chans": 3, "patch_size": 14}),
    "qwen3_vl": (
        {"head_dim": 48},
        {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1], "patch_size": 16},
    ),
}
"""What a family's config.json has beside the sizes of all."""


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("sizes", [{}, {"num_key_value_heads": 8}, {"vocab_size": 512, "num_hidden_layers": 1}])
def test_names_and_shapes_are_those_that_transformers_makes(kind: str, sizes: dict[str, int]) -> None:
    family, (own_text, own_vision) = FAMILIES[kind], OWN[kind]
    text, vision = TEXT | own_text | sizes, VISION | own_vision
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, text_config=text, vision_config=vision, tie_word_embeddings=False)
        model = AutoModelForImageTextToText.from_config(config)
    made = {plain_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert family.tensors({"text_config": text, "vision_config": vision}) == made
    assert family.tensors(text | {"vision_config": vision}) == made  # as older files have it
    assert family.shapes({"text_config": text, "vision_config": vision}).parameters == model.num_parameters()
