"""Wide-baseline matching: one view pair of real frames, 640 x 480, to its pool: decoded, matched both ways, thinned.

    python -m bench.pools ROOT        a folder of posed RGB-D frames (7-Scenes form)

Seconds of one core (CPU time: what else the machine does counts for nothing), over random pairs of frames.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from bench.measure import write_results
from hatch_ray.config_sections import DataConfig
from hatch_ray.systems.matching.sized import views_of
from hatch_ray.systems.matching.stored import Making, Part, pairs_of, write_part

PIXELS = 640 * 480


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--parts", type=int, default=2)
    arguments = parser.parse_args()
    data = DataConfig(kind="scenes", root=arguments.root)
    making = Making(data, 0, PIXELS, 50 * arguments.parts)
    scene = views_of(data, 0, "train", PIXELS)[0][0]()
    seconds, size = [], []
    for number in range(arguments.parts):
        part = Part("train", 0, number)
        start = time.process_time()
        size.append(len(write_part(scene, making, part)))
        seconds.append((time.process_time() - start) / len(pairs_of(len(scene), making, part)))
    figures = {"pairs": making.pairs, "seconds_a_pair": round(statistics.mean(seconds), 3),
               "worst_part": round(max(seconds), 3), "bytes_a_pair": round(float(np.mean(size)) / 50)}  # fmt: skip
    print(figures)
    write_results("pools", figures)


if __name__ == "__main__":
    main()
