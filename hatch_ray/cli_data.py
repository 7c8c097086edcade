"""`hatch data` and `hatch match`: datasets, view pairs, and other ways to match."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hatch_ray.cli_shared import CONFIGS, ConfigFile, Overrides, console, load, names

data_app = typer.Typer(help="Build and look at datasets.", no_args_is_help=True)
match_app = typer.Typer(help="Wide-baseline matching beside other ways to match.", no_args_is_help=True)


@data_app.command("build")
def data_build(
    config: ConfigFile,
    out: Annotated[Path, typer.Option("--out", help="folder to write; it must not exist")],
    overrides: Overrides = None,
) -> None:
    """Write the train and held-out datasets of a config to disk: images, depth, one index each.

    Where stages learn from several sections (viewpoint: views, data), each has a folder of its name.
    """
    from actors.runtime.progress import progress_bar
    from hatch_ray.data.build import write_splits
    from hatch_ray.systems import system_of

    system = system_of(load(config, overrides))
    sections = system.sections()
    with progress_bar(console, "building data") as bar:
        summaries = write_splits(
            lambda section, split, folder: system.build(section, split, folder, bar),
            {section: section if len(sections) > 1 else "" for section in sections}, out,
        )  # fmt: skip
    for place, summary in summaries.items():
        tasks = ", ".join(f"{count} {task}" for task, count in summary.get("by_task", {}).items())
        scenes = f" of {summary['scenes']} scenes" if "scenes" in summary else ""
        console.print(f"{out / place}: {summary['samples']} samples{scenes}{f' ({tasks})' if tasks else ''}")
        console.print(f"  all figures, with what was left out and why: {out / place / 'summary.json'}")


@data_app.command("think")
def data_think(
    config: ConfigFile,
    dataset: Annotated[Path, typer.Argument(help="train dataset of views", metavar="DATASET")],
    overrides: Overrides = None,
    replies: Annotated[int, typer.Option(min=1, help="thoughts to ask for, for each question")] = 4,
) -> None:
    """Let a teacher (model.base=TEACHER, in vLLM) that is given the answers write a viewpoint dataset's thoughts."""
    from actors.commands.think import think

    think(load(config, overrides), dataset, replies, console)


@data_app.command("pool")
def data_pool(
    out: Annotated[Path, typer.Option("--out", help="folder to write, or to go on with")],
    words: Annotated[
        list[str] | None,
        typer.Argument(help="YAML config (not with --scene), and changes", metavar="[CONFIG] [KEY=VALUE]..."),
    ] = None,
    scene: Annotated[Path | None, typer.Option(help="a scene's folder, or one with scenes below it")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="view pairs of each scene, at most")] = 200,
) -> None:
    """Match pairs of views for wide-baseline matching on all CPUs (docs/wide-baseline.md); a stopped one goes on."""
    from actors.commands.pool import make_pools

    given = list(words or [])
    if scene is None:
        if not given or "=" in given[0]:
            raise ValueError("name a config, or a folder of scenes with --scene")
        config = load(Path(given[0]), given[1:])
    else:
        config = load(CONFIGS / "wbm_tiny.yaml", ["data.kind=scenes", f"data.root={scene}", *given])
    found = make_pools(config, out, pairs, console)
    made = ", ".join(f"{count} for {split}" for split, count in found["pairs"].items())
    reasons = ", ".join(f"{count} {reason}" for reason, count in found["refused"].items())
    console.print(f"{out}: {made or 'no'} view pairs; refused: {reasons or 'none'}", markup=False)
    for line in found["scenes_left_out"]:
        console.print(f"  left out: {line}", markup=False)


@data_app.command("check")
def data_check(
    root: Annotated[Path, typer.Argument(help="posed RGB-D frames, SPAR's tree, or a built dataset", metavar="ROOT")],
    convention: Annotated[str, typer.Option(help="read the files so, as data.convention would")] = "",
) -> None:
    """Compare near views in depth: do poses, depth and intrinsics fit each other, and if not, what would?

    Of a built dataset: is every row well-formed?
    """
    from hatch_ray.data.check import check_root

    check_root(root, convention, lambda line: console.print(line, markup=False))


@data_app.command("show")
def data_show(
    dataset: Annotated[
        Path, typer.Argument(help="folder with index.jsonl, or one with several datasets", metavar="DATASET")
    ],
    out: Annotated[Path, typer.Option("--out", help="HTML page to write")] = Path("samples.html"),
    count: Annotated[int, typer.Option(min=1, help="samples to show")] = 12,
    seed: Annotated[int, typer.Option(help="seed of the choice")] = 0,
) -> None:
    """Show samples with views, marks, question, gold actions and a plan of the cameras in one HTML page.

    Of a folder with several datasets: a page for each one that is trained on.
    """
    from hatch_ray.report.data_page import pages_of, show_dataset

    for path, page in pages_of(dataset, out):
        console.print(f"page: {show_dataset(path, page, count, seed)}")


@match_app.command("baseline")
def match_baseline(
    questions: Annotated[Path, typer.Argument(help="a run of the system matching, or a dataset of its questions")],
    matcher: Annotated[str, typer.Option(help="by commas: sift, xfeat (the extra match), or none of them")] = "sift",
    samples: Annotated[int, typer.Option(min=0, help="answer the first so many; 0: all")] = 0,
    out: Annotated[Path | None, typer.Option(help="write all figures here, as JSON")] = None,
    bootstrap: Annotated[int, typer.Option(min=1, help="resamples for the 95 % intervals")] = 2000,
) -> None:
    """Let matchers, true poses and blind replies answer the questions a model is asked; tables by overlap."""
    from actors.runtime.progress import progress_bar
    from hatch_ray.run_folder import write_atomic
    from hatch_ray.systems.matching.compare import compare, questions_of

    with progress_bar(console, "matching") as bar:
        found = compare(questions_of(questions, samples), names(matcher), bootstrap, 0, bar)
    console.print(found.text(), markup=False)
    if out is not None:
        write_atomic(out, found.json())
        console.print(f"figures: {out}", markup=False)
