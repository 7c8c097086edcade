"""How far gold plans are from agreeing with each other: what is the best that `/reason`'s consistency can be.

    hatch data build configs/tiny.yaml --out data data.max_views=3 data.heldout_samples=300
    python -m bench.consistency data/heldout

Plans are rounded (0.1 m, a degree) and, as in `/reason`, composed in the camera's own frame; the second line knows each
camera's pitch and roll.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from hatch_ray.data.store import read_dataset
from hatch_ray.geometry.actions import motion
from hatch_ray.geometry.consistency import triples
from hatch_ray.sample import Sample


def figures(samples: list[Sample], gravity: bool) -> np.ndarray:
    """(n, 2): metres and degrees of every triple of the samples' views."""
    found = []
    for sample in samples:
        plans = {
            (plan.source, plan.target): motion(plan.atoms, plan.frame if gravity else None) for plan in sample.plans
        }
        found += [(triple.metres, triple.degrees) for triple in triples(plans)]
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("dataset", type=Path, help="a folder that `hatch data build` wrote")
    samples = [sample for sample in read_dataset(parser.parse_args().dataset) if len(sample.views) > 2]
    if not samples:
        raise SystemExit("no sample of the dataset has three views")
    for name, gravity in (("in the camera's own frame", False), ("with gravity", True)):
        half, most = np.quantile(figures(samples, gravity), [0.5, 0.9], axis=0)
        print(f"{len(samples)} samples of three views or more, composed {name}: median {half[0]:.2f} m and "
              f"{half[1]:.1f} degrees, nine of ten below {most[0]:.2f} m and {most[1]:.1f} degrees")  # fmt: skip


if __name__ == "__main__":
    main()
