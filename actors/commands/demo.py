"""`hatch demo`: the whole loop on one machine, what it shows, and how long it will take and took."""

from __future__ import annotations

import base64
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType

import httpx
import psutil
import ray
from rich.console import Console

from actors.commands.evaluate import evaluate_run
from actors.commands.timekeeper import Timekeeper
from actors.stages.recipe import run_recipe
from actors.stages.run_processes import RunProcesses
from hatch_ray.config import Config
from hatch_ray.data.store import read_dataset
from hatch_ray.report.run_report import write_report
from hatch_ray.run_folder import RunFolder
from hatch_ray.sample import Sample
from serve.launch import start_service, stop_service

ANSWER_TIMEOUT_S = 60.0


class PeakMemory:
    """Highest memory in use on this machine while it is open, above what was in use at the start (GiB)."""

    def __init__(self, every_s: float = 0.5) -> None:
        self.every_s = every_s
        self.start = psutil.virtual_memory().used
        self.peak = self.start
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(self.every_s):
            self.peak = max(self.peak, psutil.virtual_memory().used)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    @property
    def gib(self) -> float:
        return (self.peak - self.start) / 2**30


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask_service(port: int, sample: Sample) -> dict:
    """POST one held-out question with its images to /reason."""
    images = [base64.b64encode(view.image_path.read_bytes()).decode() for view in sample.views]
    body = {"images": images, "question": sample.question, "answer_form": sample.answer_form}
    reply = httpx.post(f"http://127.0.0.1:{port}/reason", json=body, timeout=ANSWER_TIMEOUT_S)
    reply.raise_for_status()
    return reply.json()


def served_sample(samples: list[Sample]) -> Sample:
    """The first held-out question without marks: its images can be sent as they are."""
    return next((sample for sample in samples if not sample.marks), samples[0])


def evaluate(config: Config, processes: RunProcesses, console: Console, clock: Timekeeper) -> None:
    """The evaluation, by the engines that have just sampled for GRPO."""
    console.print("Held-out evaluation, with true and with swapped images")
    evaluate_run(config, console, processes, clock.told)
    clock.end("evaluation")


def run_demo(config: Config, console: Console) -> RunFolder:
    """Recipe, evaluation, one answer from the service, report; prints what each achieved."""
    clock = Timekeeper(config, console)
    clock.foretell()
    with PeakMemory() as memory:
        run = run_recipe(config, console, partial(evaluate, console=console, clock=clock), clock.told)
        console.print("Ray Serve: POST /reason with a held-out question")
        sample = served_sample(read_dataset(run.data("heldout")))
        port = free_port()
        with ThreadPoolExecutor() as meanwhile:  # the service's start leaves a core idle
            writing = meanwhile.submit(write_report, run)
            start_service(config, run, port=port, blocking=False)
            try:
                reply = ask_service(port, sample)
            finally:
                stop_service()
            report = writing.result()
        console.print(f"  question: {sample.question}", markup=False)
        console.print(f"  answer:   {reply['answer']} (gold: {sample.answer})", markup=False)
        for entry in reply["actions"]:
            console.print(f"  actions {entry['from']} to {entry['to']}: {entry['action']}", markup=False)
        clock.end("service")
        ray.shutdown()
    clock.finish(memory.gib)
    console.print(f"report: {report}")
    return run
