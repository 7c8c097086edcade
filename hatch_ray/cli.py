"""The `hatch` command. Every mistake of a user is one line on standard error and exit code 2, never a traceback
(HATCH_DEBUG=1 shows it).

Heavy modules (torch, vLLM, Ray) are imported by the command that needs them, so that `hatch --help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hatch_ray.cli_data import data_app, match_app
from hatch_ray.cli_shared import CONFIGS, ConfigFile, Overrides, console, load, names
from hatch_ray.environment import prepare_environment
from hatch_ray.run_folder import RunFolder, is_bucket
from hatch_ray.system_errors import in_words

if TYPE_CHECKING:
    from hatch_ray.config import Config

app = typer.Typer(
    help="Train vision-language models to reason over several photos of one place (HATCH), on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(match_app, name="match")

RunPath = Annotated[
    str, typer.Argument(help="folder of a run, for example runs/tiny, or its home in a bucket, s3://...", metavar="RUN")
]

MEASURED_COSTS = Path(__file__).parent / "planning" / "measured.json"
"""What `python -m bench.planning` found."""


def _load_run(run: str, wants: str, overrides: list[str] | None = None) -> tuple[Config, RunFolder]:
    """The resolved config of an existing run, with changes that concern this command alone, and its folder here.

    wants: what the command needs of a run in a bucket (`storage.WANTS`).
    """
    from hatch_ray.config import ConfigError, load_config
    from hatch_ray.storage import local_run

    root = [text.partition("=")[2] for text in overrides or [] if text.startswith("storage.work_dir=")]
    folder = RunFolder(local_run(run, wants, root[-1] if root else ""))
    if not folder.config_path.is_file():
        raise ConfigError(
            f"{run} is not a run folder (no config.yaml); make one with `hatch train CONFIG run_dir={run}`"
        )
    return load_config(folder.config_path, [f"run_dir={folder.path}", *(overrides or [])]), folder


def _push_back(run: str, folder: RunFolder, *names: str) -> None:
    """What a command has written into the folder of a run in a bucket goes there."""
    if is_bucket(run):
        from hatch_ray.storage import Home

        Home(run, folder=folder.path).put_back(*names)
        console.print(f"pushed: {run}", markup=False)


def _folder_only(option: str, place: str) -> Path:
    if is_bucket(place):
        raise ValueError(f"{option} {place} is a bucket: this command needs a folder")
    return Path(place)


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan, resources and memory, then stop")] = False,
) -> None:
    """Run the recipe's stages in order; an unfinished run folder is resumed where it stopped."""
    loaded = load(config, overrides)
    if dry_run:
        from actors.stages.dry_run import describe

        describe(loaded, console)
        return
    from actors.stages.recipe import run_recipe

    run_recipe(loaded, console)


@app.command("eval")
def evaluate(
    run: RunPath,
    overrides: Overrides = None,
    benchmark: Annotated[
        str,
        typer.Option(
            help="published benchmarks, by commas (docs/benchmarks.md): spar_mv,rooms,reasonmatch,matching_rooms,..."
        ),
    ] = "",
    root: Annotated[
        list[str] | None, typer.Option(help="their files: a folder, a hub name, or BENCHMARK=either (repeatable)")
    ] = None,
    scorer: Annotated[str, typer.Option(help="SPAR-Bench's scorer for the tables: spld, official or fixed")] = "spld",
    rescore: Annotated[bool, typer.Option("--rescore", help="score kept predictions again, without a model")] = False,
    on: Annotated[str, typer.Option(help="another held-out set: rooms, a section such as views, or a folder")] = "",
) -> None:
    """Answer held-out questions with every finished stage's model, with true and with swapped images.

    With --benchmark: the last model answers published benchmarks, for the paper's tables (docs/benchmarks.md). With
    --on: every stage's model answers another set, to see what each stage brings or costs there (docs/evaluation.md).
    """
    config, folder = _load_run(run, "evaluation", overrides)
    if benchmark:
        from actors.commands.benchmark import evaluate_benchmarks

        evaluate_benchmarks(config, names(benchmark), root or [], scorer, rescore, console)
        _push_back(run, folder, "eval/", "benchmarks/")
        return
    if root or rescore:
        raise ValueError("--root and --rescore need --benchmark")
    if on:
        from actors.commands.transfer import evaluate_on

        evaluate_on(config, on, console)
        _push_back(run, folder, "eval/")
        return
    from actors.commands.evaluate import evaluate_run

    evaluate_run(config, console)
    _push_back(run, folder, "eval/")


@app.command()
def report(run: RunPath) -> None:
    """Write RUN/report.html: one offline page with curves, samples, camera plans and patch matches."""
    from hatch_ray.report.run_report import write_report

    _, folder = _load_run(run, "report")
    console.print(f"report: {write_report(folder)}")
    _push_back(run, folder, "report.html")


@app.command()
def status(
    run: RunPath,
    as_json: Annotated[bool, typer.Option("--json", help="print what the run wrote, for programs")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="again and again until the run ends or Ctrl-C")] = False,
) -> None:
    """Roles, nodes, versions, queues, waits and the time left of a run; works without a Ray connection."""
    import json
    import time

    from hatch_ray.control import STALE_SECONDS, not_live, read_status
    from hatch_ray.report.status import status_text

    while True:
        config, folder = _load_run(run, "status")
        found = read_status(folder)
        late = 3 * config.storage.mirror_seconds + 60 if is_bucket(run) else STALE_SECONDS
        ended = not_live(folder, found, late)
        if found is None:
            raise ValueError(f"{run} says nothing of itself: no training run has been at work in it")
        text = json.dumps(found | {"live": ended is None, "ended": ended}) if as_json else status_text(found, ended)
        if watch and not as_json:
            console.clear()
        console.print(text, markup=False)
        if ended or not watch:
            return
        time.sleep(config.storage.mirror_seconds if is_bucket(run) else 1)


@app.command()
def scale(
    run: RunPath,
    roles: Annotated[list[str], typer.Argument(help="reward=16, reward=auto, rollout=4", metavar="ROLE=NUMBER...")],
) -> None:
    """Give a live run more or fewer reward actors or vLLM engines; waits until they are at work. No restart."""
    from hatch_ray.control import ask, parse_scale
    from hatch_ray.storage import driven_folder

    wanted = parse_scale(roles)
    config, folder = _load_run(str(driven_folder(run, "scale")), "everything")
    try:
        answer = ask(folder, {"scale": wanted}, config.deadlines.join_seconds + 120)
    except TimeoutError as error:
        raise ValueError(str(error)) from None
    if not answer["ok"]:
        raise ValueError("; ".join(answer["lines"]))
    for line in answer["lines"]:
        console.print(line, markup=False)


@app.command()
def trace(
    run: RunPath,
    out: Annotated[Path | None, typer.Option(help="file to write; default: RUN/trace.json")] = None,
    steps: Annotated[int, typer.Option(min=1, help="the last so many steps")] = 50,
) -> None:
    """Write when each part of the last GRPO steps was at work, for ui.perfetto.dev or chrome://tracing."""
    from hatch_ray.report.trace import write_trace

    _, folder = _load_run(run, "report")
    console.print(write_trace(folder, out, steps), markup=False)
    if out is None:
        _push_back(run, folder, "trace.json")


@app.command()
def serve(
    run: RunPath,
    overrides: Overrides = None,
    follow: Annotated[bool, typer.Option("--follow", help="take over newer models of the run while serving")] = False,
) -> None:
    """Answer POST /reason with the run's model, until Ctrl-C."""
    from hatch_ray.storage import driven_folder

    config, folder = _load_run(run, "service", [*(overrides or []), *(["serve.follow=true"] if follow else [])])
    if config.serve.follow:
        driven_folder(run, "serve")
    from serve.launch import start_service

    start_service(config, folder, port=config.serve.port, blocking=True)


@app.command()
def ask(
    target: Annotated[str, typer.Argument(help="a run's folder, or the URL of a service", metavar="RUN|URL")],
    words: Annotated[
        list[str], typer.Argument(help="image files in order, then the question", metavar="IMAGE... QUESTION")
    ],
    form: Annotated[
        str, typer.Option(help="letter, number, box, camera_motion, view_change or text (the default)")
    ] = "",
    option: Annotated[list[str] | None, typer.Option(help="a choice; repeat it for each")] = None,
    samples: Annotated[int, typer.Option(min=1, max=16, help="replies to draw and vote over")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="default: 0, and 0.7 for several samples")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the draws")] = 0,
    constrained: Annotated[
        bool, typer.Option("--constrained", help="let the model write well-formed replies only")
    ] = False,
    key: Annotated[str, typer.Option(envvar="HATCH_API_KEY", help="the service's API key")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="print the whole reply as JSON")] = False,
) -> None:
    """Ask a question over images: of a running service, or of a run's model, which is started for it."""
    from serve.ask import IMAGE_ENDINGS, ask_service, is_address, is_url, service_of

    *files, question = words
    if not is_url(target) and is_address(target):
        raise ValueError(f"{target} is no run folder; for a service there write its URL: http://{target}")
    if Path(question).suffix.lower() in IMAGE_ENDINGS or Path(question).is_file():
        raise ValueError(f"the last word, {question}, is an image: the question comes last, in quotes")
    if not files:
        raise ValueError("name at least one image file before the question")
    images = [Path(file) for file in files]
    for image in images:
        if not image.is_file():
            raise FileNotFoundError(f"image {image} does not exist; the question comes last, in quotes")
    fields = {
        "answer_form": form or None,
        "options": option or [],
        "samples": samples,
        "temperature": (0.7 if samples > 1 else 0.0) if temperature is None else temperature,
        "seed": seed,
        "constrained": constrained,
    }
    talk = Console(stderr=True, highlight=False, soft_wrap=True) if as_json else console
    if is_url(target):
        ask_service(target, key, images, question, fields, as_json, talk)
        return
    with service_of(*_load_run(target, "service"), talk) as url:
        ask_service(url, key, images, question, fields, as_json, talk)


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[
        str, typer.Option(help="learner=2,rollout=6:p5.48xlarge,reward=1: nodes of each role, and their kind")
    ] = "",
    run: Annotated[list[str] | None, typer.Option(help="take the costs of this run (repeatable: better fits)")] = None,
    costs: Annotated[
        Path, typer.Option(help="else of this file; default: measured on two CPU cores", show_default=False)
    ] = MEASURED_COSTS,
    speed: Annotated[float, typer.Option(min=1e-6, help="how many times as fast the planned machine computes")] = 1.0,
    gpus: Annotated[int, typer.Option(min=0, help="show how it grows to this many GPUs")] = 0,
    prices: Annotated[Path | None, typer.Option(help="kinds of nodes and prices, like planning/prices.yaml")] = None,
) -> None:
    """Compute what a cluster would do: step time, who waits, bytes moved, cost an hour (docs/scaling.md)."""
    from hatch_ray.model.size import count_parameters
    from hatch_ray.planning.costs import read_costs
    from hatch_ray.planning.words import print_plan, run_costs
    from hatch_ray.storage import local_run

    loaded = load(config, overrides)
    if run:
        first, _ = _load_run(run[0], "report")
        folders = [local_run(each, "report") for each in run]
        measured = run_costs(folders, first, count_parameters(first.model.base))
    else:
        measured = read_costs(costs)
    parameters = count_parameters(loaded.model.base)
    print_plan(loaded, parameters, measured, nodes, gpus, speed, prices, console)


@app.command()
def demo(
    overrides: Overrides = None,
    run_dir: Annotated[str, typer.Option(help="where the run is written")] = "runs/demo",
    config: Annotated[Path, typer.Option(help="the config to run; default: tiny.yaml", show_default=False)] = (
        CONFIGS / "tiny.yaml"
    ),
) -> None:
    """The whole loop on this machine: rooms, PaStA, SFT, GRPO, evaluation, the service, the report."""
    loaded = load(config, [f"run_dir={_folder_only('--run-dir', run_dir)}", *(overrides or [])])
    from actors.commands.demo import run_demo

    run_demo(loaded, console)


@app.command()
def ablate(
    config: ConfigFile,
    overrides: Overrides = None,
    variants: Annotated[
        Path, typer.Option(help="what is compared; default: the paper's ablations", show_default=False)
    ] = CONFIGS / "ablations" / "hatch.yaml",
    seeds: Annotated[int, typer.Option(min=1, help="training runs of each variant")] = 3,
    only: Annotated[
        str, typer.Option(help="variants beside the first, by commas: no_pasta, language, ...; default: all")
    ] = "",
    out: Annotated[str, typer.Option(help="folder of all runs and the results; resumed")] = "runs/ablation",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be trained and shared")] = False,
) -> None:
    """Train variants of a config, each shared stage once, and compare them (docs/ablations.md)."""
    folder = _folder_only("--out", out)
    from actors.commands.ablate import Ablation
    from hatch_ray.ablation.variants import read_variants

    plan = Ablation(load(config, overrides), read_variants(variants).only(names(only)), folder, seeds)
    (plan.describe if dry_run else plan.train)(console)


@app.command()
def doctor() -> None:
    """Check Python, CPU, memory, torch, vLLM, Ray, GPU, compiler and NCCL, with a fix for each failure."""
    from hatch_ray.doctor import main as check

    raise typer.Exit(check())


@app.command("config")
def show_config() -> None:
    """Print every config key with its default and meaning (docs/configuration.md is this output)."""
    from hatch_ray.config_reference import reference

    print(reference(), end="")


def run_command(command: Callable[[], object]) -> None:
    """Run a command line; a user's mistake (ValueError) or the system's refusal (OSError) is one line, exit code 2."""
    prepare_environment()
    try:
        command()
    except (ValueError, FloatingPointError, OSError) as error:
        if os.environ.get("HATCH_DEBUG"):
            raise
        text = in_words(error)
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {text}", style="red", markup=False)
        sys.exit(2)


def main() -> None:
    """Entry point of `hatch`."""
    run_command(app)


if __name__ == "__main__":
    main()
