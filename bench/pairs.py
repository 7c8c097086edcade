"""Viewpoint's data: rendered pairs of photos, 112 x 112, a second of one core's time, written to disk.

python -m bench.pairs
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.measure import write_results
from hatch_ray.config import load_config
from hatch_ray.systems import system_of

CONFIG = Path(__file__).parent.parent / "configs" / "viewpoint_tiny.yaml"
SCENES = {"views": 300, "data": 250}
"""Of the config, whose samples they give."""
MODES = {"views": "orbit", "data": "free"}
"""Rendered objects, and rooms."""
SHARE = 5
"""So many times fewer of both."""


def built(section: str, folder: Path) -> dict[str, Any]:
    """Build a fifth of a section's training set; figures by name."""
    config = load_config(CONFIG)
    data = getattr(config, section)
    changes = [
        f"{section}.mode={MODES[section]}",
        f"{section}.samples={data.samples // SHARE}",
        f"{section}.rooms.train_scenes={SCENES[section] // SHARE}",
    ]
    system = system_of(load_config(CONFIG, [*changes, "views.think_share=0"]))
    start = time.process_time()
    system.build(section, "train", folder / section)
    seconds = time.process_time() - start
    summary = json.loads((folder / section / "summary.json").read_text(encoding="utf-8"))
    photos = len(list((folder / section / "images").rglob("*.png")))
    return {
        "mode": MODES[section],
        "pairs": summary["samples"],
        "scenes": summary["scenes"],
        "photos": photos,
        "refused": sum(summary["refused_pairs_by_reason"].values()),
        "cpu_seconds": round(seconds, 2),
        "pairs_a_second": round(summary["samples"] / seconds, 1),
    }


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory(prefix="pairs-") as folder:
        built("views", Path(folder) / "warm")  # libraries are loaded
        figures = {section: built(section, Path(folder)) for section in SCENES}
    for section, found in figures.items():
        print(f"{section}: {found}")
    print(f"written: {write_results('pairs', figures)}")


if __name__ == "__main__":
    main()
