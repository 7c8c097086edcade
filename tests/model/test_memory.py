"""The count of memory against what torch allocates, storage by storage, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen3VLConfig
from transformers import Qwen3VLForConditionalGeneration as Qwen3VL

from hatch_ray.config import Config, make_config
from hatch_ray.learning.pasta import PastaBatch, PastaObjective
from hatch_ray.learning.trainer_state import copied, make_optimizer, take_state
from hatch_ray.model import activations, image_features, logprobs, memory
from hatch_ray.model.activations import Numbers, Row, vision_pass, whole_pass
from hatch_ray.model.base import computing, load_model, recompute_activations, set_trainable
from hatch_ray.model.fast_vision import speed_up_vision
from hatch_ray.model.kept_prompts import KeptPrompts, apart
from hatch_ray.model.logprobs import ReplyScorer
from hatch_ray.model.lora import add_lora
from hatch_ray.model.memory import Share, host_memory, largest_rows, learner_memory, pass_moments
from hatch_ray.model.packing import PackedBatch, pack
from hatch_ray.model.prompt_tokens import ImagePatches, Prompt
from hatch_ray.model.shapes import Shapes
from hatch_ray.model.size import read_shapes, shapes_of
from tests.support.memory_used import MemoryUsed, bytes_of

pytestmark = pytest.mark.rest
WITHIN = 0.1
CPU = torch.device("cpu")
BYTES = {"float32": 4, "bfloat16": 2}


def random_model(tied: bool = True) -> Any:
    """34 million parameters with what hatch-tiny lacks: grouped keys and values, windows, a tied head."""
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": 6000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
                "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
                "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
            },
            vision_config={
                "depth": 8, "hidden_size": 256, "intermediate_size": 684, "num_heads": 4, "out_hidden_size": 512,
                "patch_size": 14, "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [3, 7],
            },
            image_token_id=5, video_token_id=6, vision_start_token_id=7, vision_end_token_id=8,
            tie_word_embeddings=tied,
        )
    )  # fmt: skip


def random_qwen3() -> Any:
    """20 million parameters: heads wider than the model, norms of queries and keys, three levels of features."""
    torch.manual_seed(0)
    return Qwen3VL(
        Qwen3VLConfig(
            text_config={
                "vocab_size": 6000, "hidden_size": 384, "intermediate_size": 1056, "num_hidden_layers": 8,
                "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [12, 10, 10]},
                "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True,
            },
            vision_config={
                "depth": 8, "hidden_size": 256, "intermediate_size": 768, "num_heads": 4, "out_hidden_size": 384,
                "patch_size": 16, "spatial_merge_size": 2, "num_position_embeddings": 64,
                "deepstack_visual_indexes": [1, 4],
            },
            image_token_id=5, video_token_id=6, vision_start_token_id=7, vision_end_token_id=8,
            tie_word_embeddings=True,
        )
    )  # fmt: skip


def make_batch(model: Any, row: Row) -> PackedBatch:
    """A batch of exactly these sizes, of random pixels."""
    patches, image = row.grid[0] * row.grid[1], model.config.image_token_id
    each, values = row.images // row.prompts, patch_values(model)
    tokens = each * [20, *[image] * (patches // 4)]  # images that touch would be one
    ids = tuple(tokens + [20] * (row.prompt - len(tokens)))
    assert len(ids) == row.prompt
    prompts = [
        Prompt(ids, tuple(ImagePatches(torch.randn(patches, values), (1, *row.grid), f"{p}-{i}") for i in range(each)))
        for p in range(row.prompts)
    ]
    batch = pack(model, prompts, [[[30] * row.reply] * (row.replies // row.prompts)] * row.prompts)
    assert batch.input_ids.shape[1] == row.tokens and len(batch.target) == row.scored
    return batch


def patch_values(model: Any) -> int:
    return int(read_shapes(model.config.to_dict()).patch_values)


def bytes_at_most(moments: dict[str, tuple[Share, ...]]) -> float:
    return max(sum(share.bytes for share in shares) for shares in moments.values())


def counted(shapes: Shapes, row: Row, numbers: Numbers, recompute: bool) -> tuple[float, float]:
    """Bytes by count: kept from forward to backward pass (with weights that autocast copied), and the most at once."""
    held = whole_pass(shapes, row, numbers, recompute)
    moments = pass_moments(shapes, held, numbers, recompute, 1, False, "")
    copies = next(share.bytes for share in moments["head"] if share.name == "weights in the compute dtype")
    return held.kept + held.logits / 3 + (0 if recompute else copies), bytes_at_most(moments)


def measured(scorer: ReplyScorer, batch: PackedBatch) -> tuple[int, int]:
    """Bytes that are live after the forward pass, and the peak of both, while gradients of a pass before are there."""
    scorer(batch)[0].sum().backward()
    with MemoryUsed() as used:
        loss = scorer(batch)[0].sum()
        live = used.live
        loss.backward()
    return live, used.peak


def compare(model: Any, row: Row, compute: str, recompute: bool, lora: int = 0, trainable: Any = "all") -> list[str]:
    """In words, what the count misses by more than WITHIN."""
    shapes = read_shapes(model.config.to_dict())
    assert shapes.parameters == sum(parameter.numel() for parameter in model.parameters())
    weight = BYTES[str(model.dtype).removeprefix("torch.")]
    if lora:
        add_lora(model, lora)
        adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert adapters == shapes.adapters(lora)
    else:
        set_trainable(model, trainable)
    speed_up_vision(model.train())
    recompute_activations(model, recompute, CPU)
    scorer = ReplyScorer(model, compute=compute)
    found = measured(scorer, make_batch(model, row))
    expected = counted(shapes, row, Numbers(BYTES[compute], weight, False, lora, trainable), recompute)
    words = [
        f"{what}: {real / 1e6:.2f} MB, by count {count / 1e6:.2f} ({count / real - 1:+.1%})"
        for what, real, count in zip(("kept", "most"), found, expected, strict=True)
    ]
    print(*words, sep="; ")
    # Autocast's copies of the head and the merger outlive the forward pass; recomputed, "kept" is without them.
    known = [1] if recompute and BYTES[compute] < weight else [0, 1]
    return [words[index] for index in known if abs(expected[index] / found[index] - 1) > WITHIN]


TINY_ROW = Row(1, 150, 8, 60, 2, (8, 8))
GROUP = Row(1, 200, 4, 30, 2, (12, 10))
LONG_PROMPT = replace(GROUP, part=True)
TWO_GROUPS = Row(2, 300, 8, 50, 4, (16, 16))


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_pass_of_hatch_tiny_takes_what_is_counted(tiny_model: Path, compute: str, recompute: bool) -> None:
    assert compare(load_model(tiny_model), TINY_ROW, compute, recompute) == []


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("row", [GROUP, TWO_GROUPS])
def test_a_pass_of_a_model_with_groups_and_windows_takes_what_is_counted(
    compute: str, recompute: bool, row: Row
) -> None:
    assert compare(random_model(), row, compute, recompute) == []


@pytest.mark.parametrize(
    ("row", "compute", "recompute", "lora"),
    [(GROUP, "float32", False, 0), (TWO_GROUPS, "bfloat16", True, 0), (GROUP, "bfloat16", False, 8)],
)
def test_a_pass_of_qwen3_takes_what_is_counted(row: Row, compute: str, recompute: bool, lora: int) -> None:
    assert compare(random_qwen3(), row, compute, recompute, lora) == []


@pytest.mark.parametrize(
    ("dtype", "compute", "settings"),
    [
        ("bfloat16", "bfloat16", {"lora": 8}),
        ("float32", "float32", {"lora": 8}),
        ("bfloat16", "bfloat16", {}),
        ("float32", "bfloat16", {"trainable": "language"}),
        ("float32", "bfloat16", {"trainable": "vision"}),
    ],
)
@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_and_frozen_parts_are_counted(
    dtype: str, compute: str, settings: dict[str, Any], recompute: bool
) -> None:
    model = random_model(tied=False).to(getattr(torch, dtype))
    assert compare(model, GROUP, compute, recompute, **settings) == []


@pytest.mark.parametrize(
    ("row", "lora"), [(LONG_PROMPT, 0), (LONG_PROMPT, 8), (Row(1, 80, 2, 200, 1, (12, 10), part=True), 0)]
)
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_group_in_parts_takes_what_is_counted(compute: Any, lora: int, recompute: bool, row: Row) -> None:
    """Its prompt, then twice the same replies; long prompts and long replies."""
    dtype = compute if lora else "float32"
    model = random_model().to(getattr(torch, dtype))
    if lora:
        add_lora(model, lora)
    speed_up_vision(model.train())
    recompute_activations(model, recompute, CPU)
    scorer, shapes = ReplyScorer(model, compute=compute), read_shapes(model.config.to_dict())
    batch = make_batch(model, row)

    def passes() -> None:
        parts = [apart(batch), apart(batch)]
        kept = KeptPrompts(scorer.prompts(parts[0][0]))
        for _, replies in parts:
            scorer.replies(replies, kept)[0].sum().backward()
        kept.backward()

    passes()
    with MemoryUsed() as used:
        passes()
    numbers = Numbers(BYTES[compute], BYTES[dtype], False, lora)
    _, most = counted(shapes, row, numbers, recompute)
    print(f"{most / used.peak - 1:+.1%}")
    assert most == pytest.approx(used.peak, rel=WITHIN)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("grid", [None, (16, 24), (12, 10)], ids=["hatch-tiny", "whole windows", "cut windows"])
def test_a_pass_of_pasta_takes_what_is_counted(
    tiny_model: Path, grid: tuple[int, int] | None, compute: Any, recompute: bool
) -> None:
    model = random_model() if grid else load_model(tiny_model)
    recompute_activations(model, recompute, CPU)
    shapes, row = read_shapes(model.config.to_dict()), Row(0, 0, 0, 0, 4, grid or (8, 8))
    speed_up_vision(model.train())
    set_trainable(model, "vision")
    objective = PastaObjective(model.model.visual, make_config({}).settings("pasta"))
    patches = row.grid[0] * row.grid[1]
    pairs = torch.arange(4).view(2, 2)
    batch = PastaBatch(
        torch.randn(4 * patches, 1176), torch.tensor([[1, *row.grid]] * 4), *pairs, torch.rand(2, 16, 16)
    )

    def loss() -> torch.Tensor:
        with computing(objective.visual, compute, CPU):
            return objective(batch)

    loss().backward()
    with MemoryUsed() as used:
        loss().backward()
    numbers = Numbers(BYTES[compute], 4)
    held = vision_pass(shapes, row, numbers, recompute, alone=True)
    moments = pass_moments(shapes, held, numbers, recompute, 1, True, "")
    assert bytes_at_most(moments) == pytest.approx(used.peak + batch.pixel_values.nbytes, rel=WITHIN)


def shares_of(shares: Sequence[Share]) -> dict[str, float]:
    return {share.name: share.bytes for share in shares}


def test_all_that_a_grpo_worker_holds_is_counted(tiny_model: Path) -> None:
    """Weights, gradients, moments and reference exactly, a whole step within the bound, a checkpoint's copy too."""
    settings = {"max_length": 512, "max_pixels": 12544, "max_images": 2}
    grpo = {"group_size": 4, "prompts_per_step": 2, "max_new_tokens": 48, "token_budget": 800}
    config = make_config({"model": settings | {"base": str(tiny_model)}, "grpo": grpo})
    shapes = shapes_of(str(tiny_model))
    model, reference = load_model(tiny_model).train(), load_model(tiny_model).requires_grad_(False)
    speed_up_vision(model)
    scorer = ReplyScorer(model)
    row = max(largest_rows(config, "grpo", shapes), key=lambda one: sum(counted(shapes, one, Numbers(4, 4), False)))
    assert row.tokens <= 800
    batch = make_batch(model, row)
    optimizer, scheduler = make_optimizer(list(model.parameters()), config.grpo, 4)
    with MemoryUsed() as used:
        for _ in range(2):
            scorer(batch)[0].sum().backward()
            optimizer.step()
    need = learner_memory(config, "grpo")
    found = shares_of(need.always)
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    assert found["weights"] == bytes_of(model.parameters())
    assert found["gradients"] == bytes_of(parameter.grad for parameter in model.parameters())
    assert found["AdamW's moments"] == bytes_of(moments)
    assert found["reference"] == bytes_of(reference.parameters())
    real = bytes_of([*model.parameters(), *reference.parameters()]) + used.peak
    assert need.gb * 1e9 == pytest.approx(real, rel=WITHIN)
    weights, state = copied(model.state_dict()), take_state(dict(model.named_parameters()), optimizer, scheduler)
    copy = shares_of(host_memory(config, "grpo"))["a checkpoint's copy"]
    assert copy == pytest.approx(bytes_of([*weights.values(), *state.tensors.values()]), rel=0.01)


def test_published_sizes_are_those_of_the_files() -> None:
    """Parameters by the config's shapes equal half of the bytes of the published bfloat16 files."""
    files = {
        "Qwen2.5-VL": {"3B": 3_754_622_976, "7B": 8_292_166_656, "32B": 33_452_718_336, "72B": 73_410_777_344},
        "Qwen3-VL": {"2B": 2_127_532_032, "4B": 4_437_815_808, "8B": 8_767_123_696, "32B": 33_357_390_064},
    }
    for family, sizes in files.items():
        for name, parameters in sizes.items():
            assert shapes_of(f"Qwen/{family}-{name}-Instruct").parameters == parameters


def test_constants_of_modules_that_bring_torch_are_the_same_here() -> None:
    assert activations.HEAD_CHUNK == logprobs.HEAD_CHUNK
    assert memory.KEPT_FEATURES == image_features.KEPT_BYTES


def test_workers_divide_what_is_sharded_and_only_those_that_a_stage_uses() -> None:
    base = {"base": "Qwen/Qwen2.5-VL-7B-Instruct", "max_pixels": 401408}

    def config_of(sharding: str, **grpo: Any) -> Config:
        learner = {"workers": 4, "gpus": 1, "compute": "bfloat16", "sharding": sharding}
        return make_config({"model": base, "learner": learner, "qa_sft": {"batch_size": 1}, "grpo": grpo})

    none, full = config_of("none"), config_of("full")
    whole, cut = (shares_of(learner_memory(config, "grpo").always) for config in (none, full))
    for name in ("weights", "gradients", "AdamW's moments"):
        assert cut[name] == whole[name] / 4
    assert whole["reference"] / 4 < cut["reference"] < whole["reference"] / 3, "its encoder stays whole"
    assert learner_memory(full, "grpo").gb < 80 < learner_memory(none, "grpo").gb
    assert learner_memory(full, "qa_sft") == learner_memory(none, "qa_sft")
    language = shares_of(learner_memory(config_of("full", trainable="language"), "grpo").always)
    assert language["weights"] > cut["weights"] and language["gradients"] < cut["gradients"]
