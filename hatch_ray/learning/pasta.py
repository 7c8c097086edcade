"""Patch-Level Spatial Alignment (PaStA; paper, section 3.3, equations 1 to 5).

The image encoder learns that patches of two views which show the same surface have similar features. Everything here
is plain torch; `actors/stages/pasta.py` runs it over several workers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hatch_ray.config_sections import PastaConfig
from hatch_ray.data.images import load_depth, load_image
from hatch_ray.geometry.overlap import PosedDepth, overlap_matrices
from hatch_ray.learning.pixels import PixelCache
from hatch_ray.model.families import family_of
from hatch_ray.sample import Sample, View

JUDGED_ROW_OVERLAP = 0.05
"""Patch retrieval is judged on rows of S with at least this sum, also when training keeps all rows."""
SCENE_BLOCK = 12
"""Pairs of one scene that stay together in the shuffled order: they share views, and a batch encodes a view once."""


@dataclass(frozen=True)
class ViewPair:
    """An unordered pair of views of one scene (X is the one whose image path sorts first)."""

    scene: str
    x: View
    y: View


@dataclass(frozen=True)
class PairTargets:
    """View pairs with their correspondence.

    pairs    P pairs.
    overlap  (P, n*n, n*n) float32, S of eq. 1: rows are X's patches, columns Y's, both row-major.
    """

    pairs: list[ViewPair]
    overlap: np.ndarray

    def subset(self, indices: Sequence[int] | np.ndarray) -> PairTargets:
        """The pairs at `indices`."""
        return PairTargets([self.pairs[int(i)] for i in indices], self.overlap[np.asarray(indices, dtype=int)])

    def draw(self, count: int, seed: int) -> PairTargets:
        """At most `count` of the pairs, drawn by the seed, in their order."""
        chosen = np.random.default_rng(seed).permutation(len(self.pairs))[:count]
        return self.subset(np.sort(chosen))

    def with_overlap(self, min_row_overlap: float) -> PairTargets:
        """Only the pairs with a row to learn, in either direction."""
        sums = np.maximum(self.overlap.sum(2).max(1), self.overlap.sum(1).max(1))
        return self.subset(np.flatnonzero(sums >= min_row_overlap))


def collect_pairs(samples: Sequence[Sample]) -> list[ViewPair]:
    """The set P of eq. 4: every unordered pair of views that some sample shows together, each image pair once.

    Raises ValueError naming the sample when a view has no depth, depth intrinsics or pose.
    """
    pairs: dict[tuple[Path, Path], ViewPair] = {}
    for sample in samples:
        for index, view in enumerate(sample.views):
            if view.depth_path is None or view.depth_intrinsics is None or view.pose is None:
                raise ValueError(
                    f"sample {sample.id}: view {index} has no depth, depth intrinsics or pose; PaStA needs them "
                    "(leave the stage out with stages=[qa_sft,cold_start,grpo], or use posed RGB-D data)"
                )
        for i, j in sample.pairs:
            x, y = sorted((sample.views[i], sample.views[j]), key=lambda view: str(view.image_path))
            if x.image_path != y.image_path:
                pairs.setdefault((x.image_path, y.image_path), ViewPair(sample.scene, x, y))
    return list(pairs.values())


def compute_overlap(
    pairs: Sequence[ViewPair], grid: int, stride: int, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """S of eq. 1 for every pair, (P, n*n, n*n) float32, from the unmarked views' depth."""

    @lru_cache(maxsize=64)
    def posed(path: Path) -> np.ndarray:
        return load_depth(path)

    def side(view: View) -> PosedDepth:
        assert view.depth_path is not None and view.depth_intrinsics is not None and view.pose is not None
        return PosedDepth(posed(view.depth_path), view.depth_intrinsics, view.pose)

    overlap = np.zeros((len(pairs), grid**2, grid**2), dtype=np.float32)
    for index, pair in enumerate(pairs):
        overlap[index] = overlap_matrices(side(pair.x), side(pair.y), grid, stride)[2]
        if progress is not None:
            progress(index + 1, len(pairs))
    return overlap


def make_targets(
    samples: Sequence[Sample],
    config: PastaConfig,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PairTargets:
    """Pairs of the samples and their overlap, read from `cache` (an .npz file) when it holds exactly these.

    Pairs without any row to learn are left out. Raises ValueError when no pair is left.
    """
    pairs = collect_pairs(samples)
    digest = hashlib.sha256(f"{config.grid} {config.pixel_stride}".encode())
    for view in (view for pair in pairs for view in (pair.x, pair.y)):
        assert view.depth_intrinsics is not None and view.pose is not None
        digest.update(f"{view.image_path} {view.depth_path}".encode())
        digest.update(np.ascontiguousarray(view.pose, dtype=np.float64).tobytes())
        digest.update(np.ascontiguousarray(view.depth_intrinsics, dtype=np.float64).tobytes())
    overlap = _read_overlap(cache, digest.hexdigest())
    if overlap is None:
        overlap = compute_overlap(pairs, config.grid, config.pixel_stride, progress)
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            temporary = cache.with_name(f".{os.getpid()}.{cache.name}")
            np.savez(temporary, overlap=overlap, digest=digest.hexdigest())
            os.replace(temporary, cache)
    kept = PairTargets(pairs, overlap).with_overlap(config.min_row_overlap)
    if not kept.pairs:
        raise ValueError(
            f"none of {len(pairs)} view pairs shares a patch (row sum of S >= {config.min_row_overlap:g}): "
            "PaStA needs samples with at least two overlapping views; lower data.min_overlap or pasta.min_row_overlap"
        )
    return kept


def _read_overlap(cache: Path | None, digest: str) -> np.ndarray | None:
    if cache is None or not cache.is_file():
        return None
    with np.load(cache) as stored:
        return stored["overlap"] if str(stored["digest"]) == digest else None


# --- eqs. 2 to 5 ------------------------------------------------------------------------------------------------


def target_distribution(overlap: torch.Tensor, tau: float) -> torch.Tensor:
    """p(j | i) of eq. 2: softmax over the last axis of S / tau_1. Same shape as S."""
    return torch.softmax(overlap / tau, dim=-1)


def model_log_distribution(features_x: torch.Tensor, features_y: torch.Tensor, tau: float) -> torch.Tensor:
    """log q(j | i) of eq. 3, (..., n*n, n*n), from L2-normalised patch features (..., n*n, d)."""
    return torch.log_softmax(features_x @ features_y.mT / tau, dim=-1)


def directional_loss(overlap: torch.Tensor, log_q: torch.Tensor, tau: float, min_row_overlap: float) -> torch.Tensor:
    """L_X->Y of eq. 5 for each pair, (B,), averaged over the rows of S whose sum is at least `min_row_overlap`.

    min_row_overlap = 0 keeps all n*n rows, as the equation is printed. A pair with no row left has loss 0.
    """
    cross_entropy = -(target_distribution(overlap, tau) * log_q).sum(-1)
    kept = (overlap.sum(-1) >= min_row_overlap).to(cross_entropy.dtype)
    return (cross_entropy * kept).sum(-1) / kept.sum(-1).clamp(min=1)


def pasta_loss(
    features_x: torch.Tensor,
    features_y: torch.Tensor,
    overlap: torch.Tensor,
    tau_target: float = 0.1,
    tau_model: float = 0.1,
    min_row_overlap: float = 0.05,
) -> torch.Tensor:
    """L_CL of eq. 4: the mean over pairs of both directions; X's and Y's roles can be swapped (S is then transposed).

    features_x, features_y (B, n*n, d) L2-normalised; overlap (B, n*n, n*n).
    """
    forward = model_log_distribution(features_x, features_y, tau_model)
    backward = model_log_distribution(features_y, features_x, tau_model)
    losses = directional_loss(overlap, forward, tau_target, min_row_overlap)
    losses = losses + directional_loss(overlap.mT, backward, tau_target, min_row_overlap)
    return losses.mean()


# --- patch features ---------------------------------------------------------------------------------------------


def cell_shares(size: int, n: int) -> torch.Tensor:
    """Which part of each of n cells along a side each of `size` encoder tokens covers: (n, size), rows sum to 1.

    A token that lies across a border counts for both cells, by length. Cells may be finer than tokens and then share
    them, but not so fine that two cells lie inside one token: these could not be told apart.
    """
    if n >= 2 * size:
        raise ValueError(
            f"an image gives {size} patch features a side, too few for a grid of n={n}: use images of more than "
            f"{n / 2:g} x {n / 2:g} merged patches (28 pixels each, Qwen3-VL: 32) or a smaller pasta.grid"
        )
    cells, tokens = torch.arange(n + 1) / n, torch.arange(size + 1) / size
    low = torch.maximum(cells[:-1, None], tokens[None, :-1])
    high = torch.minimum(cells[1:, None], tokens[None, 1:])
    return (high - low).clamp(min=0) * n


def pool_patches(tokens: torch.Tensor, shapes: Sequence[tuple[int, int]], n: int) -> torch.Tensor:
    """Average the tokens of each image into its n x n grid by area: (sum of rows*columns, d) -> (images, n*n, d)."""
    pooled = []
    for image, (rows, columns) in zip(tokens.split([r * c for r, c in shapes]), shapes, strict=True):
        by_row, by_column = (cell_shares(size, n).to(tokens) for size in (rows, columns))
        grid = torch.einsum("ir,rcd,jc->ijd", by_row, image.view(rows, columns, -1), by_column)
        pooled.append(grid.reshape(n * n, -1))
    return torch.stack(pooled)


def encode_patches(visual: nn.Module, pixel_values: torch.Tensor, grid_thw: torch.Tensor, n: int) -> torch.Tensor:
    """L2-normalised patch features e of eq. 3, (images, n*n, d), float32.

    visual is the image encoder. What the language model receives of it is used (`Family.encode`): the output after the
    2 x 2 merger, in row-major order also after window attention. Where it receives several levels (Qwen3-VL's
    DeepStack), e holds each of them normalised, over the root of their number: the product of two patches' e is the
    mean of the levels' cosines, so that tau_2 means the same and every merger learns what its blocks learn.
    """
    config: Any = visual.config
    merge = int(config.spatial_merge_size)
    tokens = family_of(config).encode(visual, pixel_values, grid_thw)
    shapes = [(int(h) // merge, int(w) // merge) for _, h, w in grid_thw.tolist()]
    levels = pool_patches(tokens.float(), shapes, n).unflatten(-1, (-1, int(config.out_hidden_size)))
    return F.normalize(levels, dim=-1).flatten(-2) / levels.shape[-2] ** 0.5


@dataclass(frozen=True)
class PastaBatch:
    """B pairs over K different views, each view once.

    pixel_values (patches of all K views, values); grid_thw (K, 3); x, y (B,) index the K views; overlap (B, n*n, n*n).
    """

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    x: torch.Tensor
    y: torch.Tensor
    overlap: torch.Tensor

    def to(self, device: torch.device | str) -> PastaBatch:
        """All tensors on `device`."""
        return PastaBatch(*(value.to(device) for value in vars(self).values()))


def make_batch(targets: PairTargets, indices: np.ndarray, pixels: PixelCache) -> PastaBatch:
    """Gather the pairs at `indices`; the views are the unmarked images."""
    order: dict[Path, int] = {}
    pairs = [targets.pairs[int(i)] for i in indices]
    for pair in pairs:
        for view in (pair.x, pair.y):
            order.setdefault(view.image_path, len(order))
    images = [pixels.get(path, partial(load_image, path)) for path in order]
    return PastaBatch(
        pixel_values=torch.cat([image.pixels for image in images]),
        grid_thw=torch.tensor([image.grid for image in images]),
        x=torch.tensor([order[pair.x.image_path] for pair in pairs]),
        y=torch.tensor([order[pair.y.image_path] for pair in pairs]),
        overlap=torch.from_numpy(targets.overlap[indices]),
    )


class PastaObjective(nn.Module):
    """The vision encoder with the PaStA loss on top: what the workers train. It holds no language model."""

    def __init__(self, visual: nn.Module, config: PastaConfig) -> None:
        super().__init__()
        self.visual = visual
        self.config = config

    def forward(self, batch: PastaBatch) -> torch.Tensor:
        """L_CL of the batch (scalar)."""
        features = encode_patches(self.visual, batch.pixel_values, batch.grid_thw, self.config.grid)
        return pasta_loss(
            features[batch.x],
            features[batch.y],
            batch.overlap,
            self.config.tau_target,
            self.config.tau_model,
            self.config.min_row_overlap,
        )


# --- the order of pairs -----------------------------------------------------------------------------------------


class PairOrder:
    """An endless, seeded order of pairs: every pair once an epoch, blocks of one scene together.

    The batch of a step depends on the seed and the step alone, so a resumed stage goes on exactly where it stopped.
    """

    def __init__(self, scenes: Sequence[str], batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self._by_scene: dict[str, list[int]] = {}
        for index, scene in enumerate(scenes):
            self._by_scene.setdefault(scene, []).append(index)
        self._count = len(scenes)
        self._epochs: dict[int, np.ndarray] = {}

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            rng = np.random.default_rng([self.seed, epoch])
            blocks: list[np.ndarray] = []
            for members in self._by_scene.values():
                shuffled = rng.permutation(members)
                blocks += [shuffled[start : start + SCENE_BLOCK] for start in range(0, len(shuffled), SCENE_BLOCK)]
            self._epochs = {epoch: np.concatenate([blocks[i] for i in rng.permutation(len(blocks))])}
        return self._epochs[epoch]

    def batch(self, step: int) -> np.ndarray:
        """Indices (batch_size,) of the pairs of step `step`, counted from 0."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        parts = [
            self._epoch(int(epoch))[places[places // self._count == epoch] % self._count]
            for epoch in np.unique(places // self._count)
        ]
        return np.concatenate(parts)


# --- patch retrieval --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retrieval:
    """How often a patch's most similar patch of the other view is the one that overlaps it most.

    mean, low, high  accuracy and its 95 % interval (bootstrap over scenes), both directions.
    n                patches judged.
    right, judged    (P,) matched and judged patches of each pair.
    predictions      (P, n*n) most similar patch of Y for each patch of X.
    """

    mean: float
    low: float
    high: float
    n: int
    right: np.ndarray
    judged: np.ndarray
    predictions: np.ndarray

    def summary(self) -> dict[str, float]:
        """mean, low and high."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def judged_rows(overlap: np.ndarray, min_row_overlap: float) -> np.ndarray:
    """(P, n*n) bool: rows of S with enough overlap to have a right answer."""
    return overlap.sum(-1) >= max(min_row_overlap, JUDGED_ROW_OVERLAP)


@torch.no_grad()
def patch_retrieval(
    visual: nn.Module,
    targets: PairTargets,
    pixels: PixelCache,
    config: PastaConfig,
    batch_size: int = 32,
    resamples: int = 2000,
    seed: int = 0,
) -> Retrieval:
    """Patch retrieval accuracy of an encoder on the targets' pairs. Raises ValueError when no row can be judged."""
    device = next(visual.parameters()).device
    views = {view.image_path: view for pair in targets.pairs for view in (pair.x, pair.y)}
    features: dict[Path, torch.Tensor] = {}
    for start in range(0, len(views), batch_size):
        paths = list(views)[start : start + batch_size]
        images = [pixels.get(path, partial(load_image, path)) for path in paths]
        values = torch.cat([image.pixels for image in images]).to(device)
        grids = torch.tensor([image.grid for image in images], device=device)
        features |= zip(paths, encode_patches(visual, values, grids, config.grid).cpu(), strict=True)
    pairs = targets.pairs
    forward = np.stack([(features[p.x.image_path] @ features[p.y.image_path].mT).numpy() for p in pairs])
    right, judged = np.zeros(len(targets.pairs)), np.zeros(len(targets.pairs))
    for scores, overlap in ((forward, targets.overlap), (forward.swapaxes(1, 2), targets.overlap.swapaxes(1, 2))):
        chosen = np.take_along_axis(overlap, scores.argmax(-1)[..., None], axis=-1)[..., 0]
        rows = judged_rows(overlap, config.min_row_overlap)
        right += ((chosen == overlap.max(-1)) & rows).sum(-1)
        judged += rows.sum(-1)
    mean, low, high = bootstrap_ratio(right, judged, [pair.scene for pair in targets.pairs], resamples, seed)
    return Retrieval(mean, low, high, int(judged.sum()), right, judged, forward.argmax(-1))


def bootstrap_ratio(
    right: np.ndarray, judged: np.ndarray, groups: Sequence[str], resamples: int, seed: int
) -> tuple[float, float, float]:
    """sum(right) / sum(judged) with its 95 % percentile interval, whole groups (scenes) drawn with replacement."""
    if judged.sum() == 0:
        raise ValueError("no patch of the pairs overlaps another view: patch retrieval has nothing to judge")
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    right_by, judged_by = np.bincount(member, right), np.bincount(member, judged)
    count = len(judged_by)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    ratios = (draws @ right_by) / np.maximum(draws @ judged_by, 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(right.sum() / judged.sum()), float(low), float(high)


def example_matches(
    targets: PairTargets, before: Retrieval, after: Retrieval, config: PastaConfig
) -> list[dict[str, Any]]:
    """Four pairs for the report, spread over the scenes: target and predicted patch of Y for each patch of X."""
    rows = judged_rows(targets.overlap, config.min_row_overlap)
    seen: dict[str, int] = {}
    # Pairs that share about half of their patches show more than near-copies or near-misses do.
    for index in np.argsort(np.abs(rows.mean(-1) - 0.5), kind="stable"):
        seen.setdefault(targets.pairs[int(index)].scene, int(index))
    return [
        {
            "images": [str(targets.pairs[index].x.image_path), str(targets.pairs[index].y.image_path)],
            "grid": config.grid,
            "target": targets.overlap[index].argmax(-1).tolist(),
            "before": before.predictions[index].tolist(),
            "after": after.predictions[index].tolist(),
            "kept": rows[index].tolist(),
        }
        for index in list(seen.values())[:4]
    ]
