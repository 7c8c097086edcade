"""`hatch eval RUN --benchmark ...`: the run's model answers published benchmarks; the paper's tables come out.

Rows are read, asked and kept in small parts: images of a part alone are in memory, and a stopped command goes on
where it was. Engines start only when there is something left to ask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
from rich.console import Console

from actors.commands.evaluate import models_of, replies, started_engines
from actors.rollout.engines import EnginePool
from actors.runtime.messages import Request, StoredImage
from actors.runtime.placement import engine_needs
from actors.runtime.progress import Report, progress_bar
from actors.stages.recipe import start_ray
from hatch_ray.benchmarks.files import choose_root, find_files, local_root
from hatch_ray.benchmarks.item import BadRowError, Item
from hatch_ray.benchmarks.kept import Kept
from hatch_ray.benchmarks.matching_report import report_matching
from hatch_ray.benchmarks.matching_scenes import SCENES, build_scenes
from hatch_ray.benchmarks.registry import KNOWN, MATCHING, ROOMS, Benchmark, check_bad_rows, survey
from hatch_ray.benchmarks.report import report_benchmarks
from hatch_ray.benchmarks.results import predict_row, rescored
from hatch_ray.benchmarks.rooms import build_rooms
from hatch_ray.benchmarks.spar_scorers import SCORERS as SPAR_SCORERS
from hatch_ray.config import Config, ConfigError
from hatch_ray.data.images import image_hash
from hatch_ray.evaluation.findings import FINAL
from hatch_ray.model.base import load_processor
from hatch_ray.model.prompt_tokens import prompt_length
from hatch_ray.run_folder import RunFolder
from hatch_ray.sample import Sample
from hatch_ray.systems import system_of

PART = 32
"""Rows for each engine in one part."""


@dataclass(frozen=True)
class Source:
    """A benchmark with its files found and looked through: its usable rows, the others by reason, the first of each."""

    name: str
    benchmark: Benchmark
    paths: tuple[Path, ...]
    usable: int
    bad: Counter[str]
    first: dict[str, str]


def open_source(name: str, config: Config, run: RunFolder, roots: Sequence[str], console: Console) -> Source:
    """Find the files (of scenes: build them) and look at every row once. Raises ValueError: wrong or damaged files, or
    a benchmark that the run's system cannot answer.
    """
    benchmark = KNOWN[name]
    if benchmark.form and benchmark.form not in system_of(config).answer_forms:
        raise ValueError(
            f"{name} asks which marks match, which a model of the system {config.system} was not taught to say; give a "
            "run of the system matching (configs/wbm_tiny.yaml)"
        )
    if name in SCENES:
        with progress_bar(console, f"building {benchmark.title}") as report:
            paths = build_scenes(name, config, roots, run.path / "benchmarks" / name / "data", report)
    elif name == ROOMS:
        folder = run.path / "benchmarks" / ROOMS / "data"
        with progress_bar(console, "building rooms") as report:
            paths = build_rooms(config.data, config.seed, config.eval.samples, folder, report)
    else:
        part = benchmark.part
        root = local_root(choose_root(part.name, roots, part.hub), part.patterns)
        paths = find_files(root, part.patterns, benchmark.title)
    return Source(name, benchmark, paths, *survey(benchmark, paths))


class Asker:
    """Makes requests of items, or says why the model cannot be asked one."""

    def __init__(self, config: Config, model: Path, stage: str) -> None:
        self.config, self.stage = config, stage
        self.system = system_of(config)
        self.processor = load_processor(model, config.model.max_pixels)

    def request(self, item: Item) -> Request | str:
        """The request, its images in the object store, or the reason to leave the item out: nothing is cut to fit.

        Raises BadRowError when an image cannot be read.
        """
        if item.n_images > self.config.model.max_images:
            return "more_images_than_model.max_images"
        messages = self.system.prompt(Sample.asked(item.question, item.n_images, item.form), self.stage)
        text = str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        images = item.images(self.config.model.max_pixels)
        length = prompt_length(self.processor, text, [image.size for image in images])
        if length + self.config.eval.max_new_tokens > self.config.model.max_length:
            return "longer_than_model.max_length"
        start_ray(self.config, engine_needs(self.config))
        stored = tuple(StoredImage(image_hash(image), ray.put(np.asarray(image))) for image in images)
        return Request(item.id, text, stored)


class Engines:
    """vLLM engines that start at the first question."""

    def __init__(self, model: Path, config: Config, console: Console) -> None:
        self.model, self.config, self.console = model, config, console
        self._stack = ExitStack()
        self._running: EnginePool | None = None

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """Greedy replies, in order."""
        if self._running is None:
            self._running = self._stack.enter_context(started_engines(self.model, self.config, self.console))
        return replies(self._running, requests, self.config)

    def stop(self) -> None:
        """End them, if they were started."""
        self._stack.close()


def ask(source: Source, kept: Kept, asker: Asker, engines: Engines, report: Report) -> None:
    """Ask every item that has no kept prediction; then write the counts.

    Raises ValueError when more than 5 % of the rows turned out to be unusable.
    """
    kept.counts_path.unlink(missing_ok=True)
    known = {row["id"] for row in kept.predictions()}
    bad, skipped, done = Counter(source.bad), Counter[str](), 0
    pending: list[tuple[Item, Request]] = []

    def flush() -> None:
        texts = engines.answer([request for _, request in pending])
        kept.append([
            predict_row(item, request.prompt, text, source.benchmark.scorers)
            for (item, request), text in zip(pending, texts, strict=True)
        ])  # fmt: skip
        known.update(item.id for item, _ in pending)
        pending.clear()

    for item in source.benchmark.read(source.paths):
        if isinstance(item, BadRowError):
            continue
        done += 1
        if item.id in known:
            continue
        try:
            request = asker.request(item)
        except BadRowError as fault:
            bad[str(fault)] += 1
            continue
        if isinstance(request, str):
            skipped[request] += 1
            continue
        pending.append((item, request))
        if len(pending) == PART * asker.config.rollout.actors:
            flush()
            report(done, source.usable)
    if pending:
        flush()
    report(source.usable, source.usable)
    rows = source.usable + source.bad.total()
    check_bad_rows(source.benchmark.title, rows, bad, source.first)
    counts = {"rows": rows, "asked": len(known), "unusable": dict(bad), "left_out": dict(skipped)}
    kept.finish(counts | ({"first": source.first} if source.first else {}))


def check_names(names: Sequence[str], roots: Sequence[str], scorer: str) -> None:
    """Raise ConfigError for an unknown benchmark or scorer, or a root for a benchmark that was not asked for."""
    if not names:
        raise ConfigError(f"--benchmark is empty; name some of {', '.join(KNOWN)}")
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise ConfigError(f"unknown benchmark {unknown[0]!r}; known: {', '.join(KNOWN)}")
    if scorer not in SPAR_SCORERS:
        raise ConfigError(f"unknown scorer {scorer!r}; known: {', '.join(SPAR_SCORERS)}")
    for root in roots:
        if "=" in root and root.partition("=")[0] not in names:
            raise ConfigError(f"--root {root} is for a benchmark that --benchmark does not name")
    if sum("=" not in root for root in roots) > 1:
        raise ConfigError("several --root without a benchmark's name; write --root NAME=FOLDER")


def rescore(run: RunFolder, names: Sequence[str]) -> None:
    """Compute answers and scores of kept predictions again. Raises ValueError when there are none."""
    for name in names:
        kept = Kept(run, name)
        kept.counts()
        kept.replace([rescored(row, KNOWN[name].scorers) for row in kept.predictions()])


def evaluate_benchmarks(
    config: Config, names: Sequence[str], roots: Sequence[str], scorer: str, only_rescore: bool, console: Console
) -> None:
    """Ask what is not kept yet, then print and write the tables of the benchmarks named."""
    check_names(names, roots, scorer)
    run = RunFolder(config.run_dir)
    if only_rescore:
        rescore(run, names)
    else:
        ask_all(config, run, names, roots, console)
    settings = (config.eval.bootstrap, config.seed, console)
    if tabled := [name for name in names if name not in MATCHING]:
        report_benchmarks(run, tabled, scorer, *settings)
    if matching := [name for name in names if name in MATCHING]:
        report_matching(run, matching, *settings)


def ask_all(config: Config, run: RunFolder, names: Sequence[str], roots: Sequence[str], console: Console) -> None:
    """Ask the run's last model."""
    model = models_of(config, run)[FINAL]
    stage = model.folder.parent.name
    sources = [open_source(name, config, run, roots, console) for name in names]
    for source in sources:
        names = ("reasoning", "template", "max_pixels", "max_images", "max_length")
        settings = {"stage": stage, "step": run.progress()[stage]["step"]}
        settings |= {name: getattr(config.model, name) for name in names}
        Kept(run, source.name).check_settings(settings | {
            "max_new_tokens": config.eval.max_new_tokens,
            "rows": source.usable,
            "files": {path.name: path.stat().st_size for path in source.paths if path.is_file()},
        })  # fmt: skip
    asker, engines = Asker(config, model.folder, model.stage), Engines(model.folder, config, console)
    try:
        for source in sources:
            with progress_bar(console, f"answering: {source.benchmark.title}") as report:
                ask(source, Kept(run, source.name), asker, engines, report)
    finally:
        engines.stop()
