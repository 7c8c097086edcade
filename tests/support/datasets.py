"""Small datasets made of samples."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.build import build_dataset, write_splits
from hatch_ray.data.writer import DatasetWriter
from hatch_ray.sample import Sample, View


def write_dataset(path: str | Path, samples: Iterable[Sample]) -> None:
    """Copy samples with absolute paths into a dataset folder of their own."""
    with DatasetWriter(path) as writer:
        for sample in samples:
            views = []
            for view in sample.views:
                places: dict[str, Path | None] = {"image_path": view.image_path, "depth_path": view.depth_path}
                for key, source in places.items():
                    if source is not None:
                        target = Path("images" if key == "image_path" else "depth") / source.parent.name / source.name
                        (writer.folder / target).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(source, writer.folder / target)
                        places[key] = target
                views.append(View(**(vars(view) | places)))
            writer.add(Sample(**(vars(sample) | {"views": tuple(views)})))
        writer.summary = {"samples": len(writer)}


def build_splits(data: DataConfig, seed: int, out: Path) -> None:
    """Both datasets of a config, as `hatch data build` makes them."""
    write_splits(lambda _, split, folder: build_dataset(data, seed, split, folder), {"data": ""}, out)
