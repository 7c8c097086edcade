"""Index a synthetic SPAR tree and draw rows from it: rows a second, peak memory.

    python bench/spar_index.py [--rows 1000000] [--draw 10000] [--out bench/results/spar_index.json]

The tree has the published layout and record sizes (three sources, 23 tasks, fill, select and sentence rows), but no
pictures: what is measured is reading rows. Memory is this process's largest resident set, the index's map included.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from hatch_ray.config_sections import DataConfig
from hatch_ray.data.spar.index import open_index
from hatch_ray.data.spar.layout import TASKS, Marks, chosen_tasks
from hatch_ray.data.spar.record import read_record
from hatch_ray.data.spar.tree import TreeRows
from hatch_ray.run_folder import write_atomic

SOURCES = {"scannet": ("scene{:04d}_00", 1200), "scannetpp": ("{:010x}", 850), "structured3d": ("scene_{:05d}", 2400)}
"""Name and number of scenes of each source."""
ANSWERS = {
    "number": "1.5",
    "box": "[112,87,430,655]",
    "camera_motion": "(512,340),1.4",
    "view_change": "move_left:2.6,move_down:0.1,move_forward:0.2,rotate_up:10,rotate_left:0",
    "text": "the second image, [112,87,430,655] (chair)",
}
FORMATS = {"fill": 0.4, "select": 0.4, "sentence": 0.2}
WORDS = " Calculate or judge based on the 3D center points of these objects. The unit is meter." * 3


def make_tree(root: Path, rows: int) -> int:
    """Write about `rows` rows below `root`; returns how many."""
    written = 0
    tasks = chosen_tasks([], "both")
    each = rows / (len(SOURCES) * len(tasks))
    for source, (name, scenes) in SOURCES.items():
        for number, task in enumerate(tasks):
            for form, share in FORMATS.items():
                count = round(each * share)
                folder = root / source / "qa_jsonl" / "train" / task / form
                folder.mkdir(parents=True)
                with (folder / f"{form}_{count}.jsonl").open("w", encoding="utf-8") as file:
                    for row in range(count):
                        scene = name.format((row * 7 + number) % scenes)
                        file.write(json.dumps(make_record(scene, row, task, form)) + "\n")
                written += count
    return written


def make_record(scene: str, row: int, task: str, form: str) -> dict[str, object]:
    """One record, as long as the published ones (about 700 bytes)."""
    spec = TASKS[task]
    images = [f"{scene}/image_color/{row * 3 + view}.jpg" for view in range(spec.views)]
    answer = {"select": "B", "sentence": "The answer in a sentence."}.get(form) or ANSWERS[spec.fill]
    record: dict[str, object] = {
        "id": f"{scene}_{row}",
        "conversations": [
            {"from": "human", "value": f"Question {row} about {task}.{WORDS}"},
            {"from": "gpt", "value": answer},
        ],
        "image": images,
        "type": task,
        "depth": [image.replace("color", "depth").replace("jpg", "png") for image in images],
    }
    return record | make_marks(spec.marks, spec.views)


def make_marks(marks: Marks | None, views: int) -> dict[str, object]:
    """Fields of a task's marks, every value wrapped in one more list."""
    if marks is None:
        return {}
    colors = marks.colors[: marks.exactly or None]
    value = [100, 200] if marks.kind == "point" else [100, 200, 300, 400]
    fields: dict[str, object] = {f"{color}_{marks.kind}": [value] for color in colors}
    return fields | {f"{marks.kind}_img_idx": [[k % views for k in range(len(colors))]]}


def peak_mib() -> float:
    """Largest resident set of this process so far, MiB."""
    # getrusage's ru_maxrss would count the process that started this one, too: it outlives fork and exec.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024


def measure(root: Path, rows: int, draw: int) -> dict[str, object]:
    """Make, index, open again, draw; the figures by name."""
    start = time.perf_counter()
    written = make_tree(root, rows)
    size = sum(path.stat().st_size for path in root.rglob("*.jsonl"))
    made, before = time.perf_counter(), peak_mib()
    index = open_index(root, root / "hatch-index")
    indexed = time.perf_counter()
    assert len(index) == written
    opened = time.perf_counter()
    data = DataConfig(kind="spar", root=root, samples=draw)
    reader = TreeRows(data, 0, "train", root / "unused")
    tasks: dict[str, int] = {}
    for _, _, form, raw in islice(reader.draw(), draw):
        task = read_record(raw, form).task
        tasks[task] = tasks.get(task, 0) + 1
    drawn = time.perf_counter()
    assert sum(tasks.values()) == min(draw, reader.counts["rows_to_draw_from"])
    return {
        "rows": written,
        "json_gib": round(size / 2**30, 3),
        "index_mib": round((root / "hatch-index" / "rows.bin").stat().st_size / 2**20, 1),
        "making_seconds": round(made - start, 1),
        "index_seconds": round(indexed - made, 1),
        "rows_a_second": round(written / (indexed - made)),
        "peak_mib_before_indexing": round(before, 1),
        "rows_to_draw_from": reader.counts["rows_to_draw_from"],
        "drawn": sum(tasks.values()),
        "draw_seconds": round(drawn - opened, 2),
        "peak_mib": round(peak_mib(), 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "processor": f"{platform.machine()}, one core",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--draw", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="spar-index-"))
    try:
        figures = measure(root, options.rows, options.draw)
    finally:
        shutil.rmtree(root)
    for name, value in figures.items():
        print(f"{name}: {value}")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out, json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
