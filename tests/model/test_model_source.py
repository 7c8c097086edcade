"""What is known of a model folder before anything is loaded: its kind, its size, what is wrong with it."""

import shutil
import subprocess
import sys

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from hatch_ray.model.size import count_parameters
from hatch_ray.model.source import model_source


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_loaded_model(tiny_model, tmp_path, tied):
    """From one file and from several; a tied head is one tensor and counts once."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_model)
    if tied:
        model.lm_head.weight = model.get_input_embeddings().weight
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "model", max_shard_size="200KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    assert count_parameters(str(tmp_path / "model")) == model.num_parameters()
    if not tied:
        assert count_parameters(str(tiny_model)) == model.num_parameters()
    assert model.num_parameters() == sum(value.numel() for value in {id(p): p for p in model.parameters()}.values())
    assert all(value.dtype == torch.float32 for value in model.parameters())


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is not a model's config"),
        (lambda folder: (folder / "config.json").write_text("{"), "is not a model's config"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
            "'llama'; a Qwen2.5-VL or Qwen3-VL is",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors files"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is not a safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "is not a safetensors file"),
        (lambda folder: cut(folder / "model.safetensors"), "is cut short"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_why(tiny_model, tmp_path, spoil, said):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    spoil(folder)
    with pytest.raises(ValueError, match=said):
        count_parameters(str(folder))


def cut(file):
    file.write_bytes(file.read_bytes()[:-10])


def test_names_are_left_to_the_hub_and_paths_must_exist():
    assert model_source("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    for path in ("./absent", "/absent", "~/absent"):
        with pytest.raises(ValueError, match="does not exist"):
            model_source(path)


def test_a_mistake_is_told_before_torch_is_imported():
    """`hatch train` knows what is wrong with its inputs within a second or two."""
    modules = (
        "import actors.stages.recipe, actors.stages.dry_run, sys; "
        "print(*{'torch', 'transformers', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", modules], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
