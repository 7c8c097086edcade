"""What PaStA did to the image encoder, for the report: what the model keeps, and example matches of patches."""

from __future__ import annotations

from typing import Any

from hatch_ray.data.images import load_image, shrink
from hatch_ray.evaluation.heldout import read_table
from hatch_ray.evaluation.kept import figure, got_worse
from hatch_ray.report.charts import match_svg
from hatch_ray.report.pages import IMAGE_PIXELS, inline_image
from hatch_ray.run_folder import RunFolder

Row = dict[str, Any]
ENDS = ("value", "low", "high")


def kept(run: RunFolder) -> Row | None:
    """The table of what PaStA keeps (`evaluation.kept`), in words; None where it was not measured."""
    table = read_table(run, "kept")
    if not (table and table["kept"]):
        return None
    rows = []
    for row in table["kept"]:
        parts = {when: [figure(row[when][end], row["unit"]) for end in ENDS] for when in ("before", "after", "gain")}
        rows.append(parts | {"name": row["name"], "n": row["before"]["n"], "worse": got_worse(row)})
    return {"rows": rows, "warnings": table["warnings"]}


def matches(run: RunFolder) -> list[Row]:
    """Example pairs of views with their patches' matches as pictures, before and after."""
    pairs: list[Row] = []
    for match in read_table(run, "patch_matches") or []:
        try:
            views = [shrink(load_image(run.moved(path)), IMAGE_PIXELS) for path in match["images"]]
        except ValueError as error:
            pairs.append({"problem": str(error), "sides": []})
            continue
        urls = [inline_image(view) for view in views]
        sides = [
            (when, *match_svg(views, urls, match["grid"], match["target"], match[when], match["kept"]))
            for when in ("before", "after")
        ]
        pairs.append({"problem": "", "sides": sides})
    return pairs
