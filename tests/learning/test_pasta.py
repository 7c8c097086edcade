"""PaStA: equations 2 to 5, patch features of the real encoder, what learns, patch retrieval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hatch_ray.config_sections import PastaConfig
from hatch_ray.learning.pasta import (
    PairOrder,
    PairTargets,
    PastaObjective,
    bootstrap_ratio,
    cell_shares,
    collect_pairs,
    directional_loss,
    encode_patches,
    example_matches,
    make_batch,
    make_targets,
    model_log_distribution,
    pasta_loss,
    patch_retrieval,
    pool_patches,
    target_distribution,
)
from hatch_ray.learning.pixels import PixelCache
from hatch_ray.model.base import load_model, load_processor, part_checksum, set_trainable
from tests.support.pictures import photo
from tests.support.wall_scene import wall_sample, wall_view
from tools.tiny import make_tiny
from tools.tiny_qwen3 import TinyQwen3

N = 4
CONFIG = PastaConfig()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list:
    folder = tmp_path_factory.mktemp("walls")
    return [wall_sample(folder, seed, [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]) for seed in range(3)]


def overlap_and_features(seed: int, pairs: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    overlap = torch.rand(pairs, 9, 9, generator=generator) / 9
    features = F.normalize(torch.randn(2, pairs, 9, 5, generator=generator), dim=-1)
    return overlap, features[0], features[1]


@given(st.integers(0, 10**6), st.floats(0.02, 2.0))
@settings(max_examples=25, deadline=None)
def test_distributions_sum_to_one(seed: int, tau: float) -> None:
    overlap, x, y = overlap_and_features(seed)
    assert torch.allclose(target_distribution(overlap, tau).sum(-1), torch.ones(3, 9), atol=1e-5)
    assert torch.allclose(model_log_distribution(x, y, tau).exp().sum(-1), torch.ones(3, 9), atol=1e-5)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.5]))
@settings(max_examples=25, deadline=None)
def test_loss_is_the_same_with_x_and_y_swapped(seed: int, floor: float) -> None:
    overlap, x, y = overlap_and_features(seed)
    assert torch.allclose(
        pasta_loss(x, y, overlap, min_row_overlap=floor), pasta_loss(y, x, overlap.mT, min_row_overlap=floor), atol=1e-5
    )


def test_loss_equals_the_printed_equations() -> None:
    overlap, x, y = overlap_and_features(5, pairs=2)
    total = 0.0
    for pair in range(2):
        for s, a, b in ((overlap[pair], x[pair], y[pair]), (overlap[pair].T, y[pair], x[pair])):
            for i in range(9):
                p = np.exp(s[i].numpy() / 0.1) / np.exp(s[i].numpy() / 0.1).sum()
                cos = np.array([F.cosine_similarity(a[i], b[j], dim=0).item() for j in range(9)])
                q = np.exp(cos / 0.2) / np.exp(cos / 0.2).sum()
                total += -(p * np.log(q)).sum() / 9 / 2
    assert pasta_loss(x, y, overlap, 0.1, 0.2, min_row_overlap=0.0).item() == pytest.approx(total, rel=1e-5)


def test_rows_without_overlap_give_no_gradient() -> None:
    overlap, x, y = overlap_and_features(6, pairs=1)
    overlap[:, 4, :] = 0
    x.requires_grad_(True)
    directional_loss(overlap, model_log_distribution(x, y, 0.1), 0.1, min_row_overlap=0.05).sum().backward()
    assert x.grad is not None
    moved = x.grad[0].abs().sum(-1) > 0
    assert moved.tolist() == [patch != 4 for patch in range(9)]


def test_a_pair_without_a_kept_row_has_loss_zero_and_a_finite_gradient() -> None:
    _, x, y = overlap_and_features(7, pairs=1)
    x.requires_grad_(True)
    loss = pasta_loss(x, y, torch.zeros(1, 9, 9))
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert (x.grad == 0).all()


@pytest.mark.parametrize("size", [3, 4, 5, 9, 16, 22])
@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_a_token_counts_for_the_cells_that_it_covers(size: int, n: int) -> None:
    """Against counting: each token and each cell cut into many equal pieces."""
    pieces = torch.arange(size * n * 4)
    token, cell = pieces // (4 * n), pieces // (4 * size)
    counted = torch.zeros(n, size).index_put((cell, token), torch.ones(len(pieces)), accumulate=True)
    shares = cell_shares(size, n)
    assert torch.allclose(shares, counted / (4 * size), atol=1e-6)
    assert torch.allclose(shares.sum(1), torch.ones(n), atol=1e-6)


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gives 2 patch features a side, too few for .* n=4.*more than 2 x 2 merged"):
        pool_patches(torch.randn(10, 3), [(2, 5)], N)
    cells = pool_patches(torch.randn(15, 3), [(3, 5)], 5)[0]
    assert torch.unique(cells, dim=0).shape == cells.shape  # finer than the tokens, yet all different


def test_pooling_averages_each_image_on_its_own() -> None:
    tokens = torch.randn(4 * 4 + 8 * 6, 3)
    pooled = pool_patches(tokens, [(4, 4), (8, 6)], 2)
    expected = tokens[16:].reshape(2, 4, 2, 3, 3).permute(0, 2, 1, 3, 4).reshape(4, 12, 3).mean(1)
    assert torch.allclose(pooled[1], expected, atol=1e-6)
    assert torch.allclose(pooled[0], tokens[:16].reshape(2, 2, 2, 2, 3).permute(0, 2, 1, 3, 4).reshape(4, 4, 3).mean(1))


def test_encoder_tokens_come_in_row_major_order_whatever_the_windows(tiny_model: Path) -> None:
    """With attention switched off a token sees its own 28 x 28 block, so equal blocks must have equal features."""
    model, processor = load_model(tiny_model), load_processor(tiny_model)
    visual = model.model.visual
    visual.window_size, visual.fullatt_block_indexes = 56, [3]
    for block in visual.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.zeros_(block.attn.proj.bias)
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 256, size=(5, 7, 28, 28, 3), dtype=np.uint8)
    image = blocks.transpose(0, 2, 1, 3, 4).reshape(140, 196, 3)
    whole = processor.image_processor(images=[image], return_tensors="pt")
    tokens = visual(whole["pixel_values"], grid_thw=whole["image_grid_thw"]).pooler_output
    for row, column in ((0, 0), (0, 6), (2, 3), (3, 1), (4, 6)):
        alone = processor.image_processor(images=[np.tile(blocks[row, column], (2, 2, 1))], return_tensors="pt")
        one = visual(alone["pixel_values"], grid_thw=alone["image_grid_thw"]).pooler_output[0]
        assert torch.allclose(tokens[row * 7 + column], one, atol=1e-5)


def test_of_several_levels_the_mean_cosine_counts_and_every_merger_learns(tmp_path: Path) -> None:
    """Qwen3-VL gives its language model one level at the input and others deeper: PaStA aligns all of them."""
    folder = make_tiny(tmp_path / "model", 0, TinyQwen3(vision_layers=3, text_layers=1))
    visual, processor = load_model(folder).model.visual, load_processor(folder)
    out = processor.image_processor(images=[photo(1), photo(2, 96, 128)], return_tensors="pt")
    features = encode_patches(visual, out["pixel_values"], out["image_grid_thw"], 2)
    found = visual(out["pixel_values"], grid_thw=out["image_grid_thw"])
    shapes = [(int(h) // 2, int(w) // 2) for _, h, w in out["image_grid_thw"]]
    cosines = []
    for level in (found.pooler_output, *found.deepstack_features):
        e = F.normalize(pool_patches(level, shapes, 2), dim=-1)
        cosines.append(e[0] @ e[1].mT)
    assert len(cosines) == 3
    assert torch.allclose(features[0] @ features[1].mT, torch.stack(cosines).mean(0), atol=1e-5)
    pasta_loss(features[:1], features[1:], torch.rand(1, 4, 4)).backward()
    assert all(parameter.grad is not None for parameter in visual.parameters())
    assert all(merger.linear_fc1.weight.grad.abs().max() > 0 for merger in visual.deepstack_merger_list)


def test_pairs_are_unordered_and_taken_once(samples: list) -> None:
    first = samples[0]
    turned = replace(first, id="again", views=first.views[::-1])
    assert len(collect_pairs([first])) == 3
    assert len(collect_pairs([first, turned, samples[1]])) == 6


def test_a_view_without_depth_is_refused(samples: list) -> None:
    bare = replace(samples[0], views=(samples[0].views[0], replace(samples[0].views[1], depth_path=None)))
    with pytest.raises(ValueError, match="view 1 has no depth"):
        collect_pairs([bare])


def test_targets_follow_the_known_shift_and_are_cached(samples: list, tmp_path: Path) -> None:
    """The view is 4 m wide, so a camera 1 m to the right sees each patch one patch further left."""
    cache = tmp_path / "targets.npz"
    targets = make_targets(samples[:1], CONFIG, cache)
    pair = next(
        i for i, p in enumerate(targets.pairs) if p.x.image_path.stem == "view0" and p.y.image_path.stem == "view1"
    )
    s = targets.overlap[pair]
    for patch in range(16):
        row, column = divmod(patch, 4)
        if column == 0:
            assert s[patch].sum() == pytest.approx(0, abs=0.13)
        else:
            assert s[patch].argmax() == row * 4 + column - 1
            assert s[patch].max() > 0.8
    calls: list[int] = []
    again = make_targets(samples[:1], CONFIG, cache, progress=lambda done, total: calls.append(done))
    assert not calls
    assert np.array_equal(again.overlap, targets.overlap)
    make_targets(samples[:2], CONFIG, cache, progress=lambda done, total: calls.append(done))
    assert calls == [1, 2, 3, 4, 5, 6]


def test_views_that_share_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of 1 view pairs shares a patch"):
        make_targets([wall_sample(tmp_path, 9, [(0.0, 0.0), (7.0, 0.0)])], CONFIG)


def test_a_batch_encodes_each_view_once_and_sizes_may_differ(samples: list, tmp_path: Path, tiny_model: Path) -> None:
    wide = wall_view(tmp_path, 0, "wide", (0.5, 0.0), size=(224, 140))
    mixed = replace(samples[0], views=(*samples[0].views, wide))
    targets = make_targets([mixed], CONFIG)
    model, processor = load_model(tiny_model), load_processor(tiny_model)
    batch = make_batch(targets, np.arange(len(targets.pairs)), PixelCache(processor))
    assert len(batch.grid_thw) == 4
    assert len(batch.x) == 6
    features = encode_patches(model.model.visual, batch.pixel_values, batch.grid_thw, N)
    assert features.shape == (4, 16, 192)
    assert torch.allclose(features.norm(dim=-1), torch.ones(4, 16), atol=1e-5)
    start = 0
    for index, grid in enumerate(batch.grid_thw):
        size = int(grid.prod())
        alone = encode_patches(model.model.visual, batch.pixel_values[start : start + size], grid[None], N)
        assert torch.allclose(alone[0], features[index], atol=1e-5)
        start += size


def test_only_the_image_encoder_learns_and_retrieval_rises(tmp_path: Path, tiny_model: Path) -> None:
    samples = [wall_sample(tmp_path, seed, [(0.0, 0.0), (1.3, 0.2), (0.4, 1.2)], other_light=True) for seed in range(3)]
    model, processor = load_model(tiny_model), load_processor(tiny_model)
    targets, pixels = make_targets(samples, CONFIG), PixelCache(processor)
    set_trainable(model, "vision")
    language, vision = part_checksum(model, "language"), part_checksum(model, "vision")
    visual = model.model.visual
    objective = PastaObjective(visual, CONFIG)
    before = patch_retrieval(visual, targets, pixels, CONFIG)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3, weight_decay=0.1)
    order = PairOrder([pair.scene for pair in targets.pairs], 9, seed=0)
    losses = []
    for step in range(30):
        loss = objective(make_batch(targets, order.batch(step), pixels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = patch_retrieval(visual, targets, pixels, CONFIG)
    assert part_checksum(model, "language") == language
    assert part_checksum(model, "vision") != vision
    assert all(p.grad is None for name, p in model.named_parameters() if "visual." not in name)
    assert losses[-1] < losses[0]
    assert after.mean > before.mean + 0.15
    matches = example_matches(targets, before, after, CONFIG)
    assert len(matches) == 3
    assert all(len(match["after"]) == 16 and Path(match["images"][0]).is_file() for match in matches)


def test_retrieval_is_perfect_where_patches_are_copies_of_each_other(samples: list, tiny_model: Path) -> None:
    """Cameras one patch apart see the same pixels, which have the same features under any weights, attention aside."""
    visual = load_model(tiny_model).model.visual
    result = patch_retrieval(visual, make_targets(samples, CONFIG), PixelCache(load_processor(tiny_model)), CONFIG)
    assert (result.mean, result.low, result.high) == (1.0, 1.0, 1.0)
    assert result.n == 3 * (12 + 12 + 9) * 2


def test_every_pair_comes_once_an_epoch_and_a_step_depends_on_nothing_else() -> None:
    scenes = [f"s{i % 5}" for i in range(83)]
    order = PairOrder(scenes, batch_size=8, seed=1)
    steps = [order.batch(step) for step in range(21)]
    stream = np.concatenate(steps)
    assert sorted(stream[:83]) == list(range(83))
    assert sorted(stream[83:166]) == list(range(83))
    assert not np.array_equal(stream[:83], stream[83:166])
    fresh = PairOrder(scenes, batch_size=8, seed=1)
    assert np.array_equal(fresh.batch(10), steps[10])
    assert not np.array_equal(PairOrder(scenes, 8, seed=2).batch(10), steps[10])
    big = PairOrder(scenes[:3], batch_size=8, seed=1)
    assert np.bincount(big.batch(0)).tolist() in ([2, 3, 3], [3, 2, 3], [3, 3, 2])


def test_bootstrap_draws_whole_scenes() -> None:
    right, judged = np.array([10.0, 0, 10, 0]), np.array([10.0, 10, 10, 10])
    mean, low, high = bootstrap_ratio(right, judged, ["a", "b", "a", "b"], 2000, 0)
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="nothing to judge"):
        bootstrap_ratio(np.zeros(2), np.zeros(2), ["a", "b"], 10, 0)


def test_subset_keeps_pairs_and_overlap_together(samples: list) -> None:
    targets = make_targets(samples, CONFIG)
    part = targets.subset([2, 0])
    assert isinstance(part, PairTargets)
    assert part.pairs == [targets.pairs[2], targets.pairs[0]]
    assert np.array_equal(part.overlap[1], targets.overlap[0])
