"""`hatch demo`: the whole loop on one machine, what it shows, and how long it will take and took."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import ray
from rich.console import Console

from actors.commands.evaluate import evaluate_run
from actors.commands.forecast import Timekeeper
from actors.stages.recipe import run_recipe
from actors.stages.run_processes import RunProcesses
from hatch_ray.config import Config
from hatch_ray.data.store import read_dataset
from hatch_ray.report.run_report import write_report
from hatch_ray.run_folder import RunFolder
from serve.client import Reasoner
from serve.launch import start_service, stop_service

ANSWER_TIMEOUT_S = 60.0
LOOK_SECONDS = 0.5


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """Yields what says by how many GiB this machine's memory in use has risen at most since the block began."""
    start, done = psutil.virtual_memory().used, threading.Event()
    peak = start

    def watch() -> None:
        nonlocal peak
        while not done.wait(LOOK_SECONDS):
            peak = max(peak, psutil.virtual_memory().used)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: (peak - start) / 2**30
    finally:
        done.set()
        watcher.join()


def run_demo(config: Config, console: Console) -> RunFolder:
    """Recipe, evaluation, one answer from the service, report; prints what each achieved."""
    clock = Timekeeper(config, console)
    clock.foretell()

    def evaluate(config: Config, processes: RunProcesses) -> None:
        """By the engines that have just sampled for GRPO."""
        console.print("Held-out evaluation, with true and with swapped images")
        evaluate_run(config, console, processes, clock.told)
        clock.end("evaluation")

    with peak_memory() as memory_gib:
        run = run_recipe(config, console, evaluate, clock.told)
        console.print("Ray Serve: POST /reason with a held-out question")
        samples = read_dataset(run.data("heldout"))
        sample = next((sample for sample in samples if not sample.marks), samples[0])  # its images are sent as they are
        images = [view.image_path for view in sample.views]
        with ThreadPoolExecutor() as meanwhile:  # the service's start leaves a core idle
            writing = meanwhile.submit(write_report, run)
            try:
                with Reasoner(start_service(config, run, port=0), timeout_s=ANSWER_TIMEOUT_S) as reasoner:
                    reply = reasoner.ask(images, sample.question, answer_form=sample.answer_form)
            finally:
                stop_service()
            report = writing.result()
        console.print(f"  question: {sample.question}", markup=False)
        console.print(f"  answer:   {reply.answer} (gold: {sample.answer})", markup=False)
        for plan in reply.actions:
            console.print(f"  actions {plan.source} to {plan.to}: {plan.action}", markup=False)
        clock.end("service")
        ray.shutdown()
    clock.finish(memory_gib())
    console.print(f"report: {report}")
    return run
