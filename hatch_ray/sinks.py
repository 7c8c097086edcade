"""Where a run's metrics go while it trains, beside metrics.jsonl: TensorBoard, Weights & Biases, trackio.

    driver: mirrored(config, run)  -> one process a sink: python -m hatch_ray.sinks NAME RUN
    sink:   new rows of metrics.jsonl, every POLL_SECONDS -> its package, under the names STAGE/NAME

Each is a process of its own because such a package may hang, die, print, or wait for a network at its end: nothing in
training waits for it. Its standard input closes when the run ends, or when the driver is gone: it sends the rest.

RUN/sinks/NAME.json holds {"project", "id": of the run there, "rows": sent, "last": {stage: its last step sent}}: a
resumed run goes on in the same one there, and a step that is taken again is not sent again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hatch_ray.environment import installed
from hatch_ray.run_folder import RunFolder, Tail, write_atomic

if TYPE_CHECKING:  # a sink's process does without it
    from hatch_ray.config import Config

POLL_SECONDS = 1.0
END_SECONDS = 20.0
"""How long a run that ends waits for its sinks to send the rest."""
ORPHAN_SECONDS = 60
"""A sink without a driver ends itself after this long."""
log = logging.getLogger("hatch_ray")


# --- the driver's side ------------------------------------------------------------------------------------------


def check_sinks(config: Config) -> None:
    """Raise ValueError for a sink whose package is not installed."""
    for name in ("wandb", "trackio"):
        if getattr(config, name) and installed(name) is None:
            raise ValueError(
                f"{name}={getattr(config, name)} needs the package {name}: pip install 'hatch-ray[{name}]', or leave "
                f"{name} empty"
            )


@contextmanager
def mirrored(config: Config, run: RunFolder) -> Iterator[None]:
    """While the block runs, each sink that the config names gets the metrics. One that fails is told once, by name."""
    started = [_start(name, run) for name in SINKS if getattr(config, name)]
    try:
        yield
    finally:
        end = time.monotonic() + END_SECONDS
        for process, _ in started:
            assert process.stdin is not None
            process.stdin.close()
        for process, watcher in started:
            watcher.join(max(0.0, end - time.monotonic()))
            process.kill()
            watcher.join()


def _start(name: str, run: RunFolder) -> tuple[subprocess.Popen[bytes], threading.Thread]:
    ours = str(Path(__file__).resolve().parents[1])
    places = os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"WANDB_ERROR_REPORTING": "false"} | os.environ | {"PYTHONPATH": places}
    said = run.path / "sinks" / f"{name}.log"
    said.parent.mkdir(parents=True, exist_ok=True)
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hatch_ray.sinks", name, str(run.path)], stdin=subprocess.PIPE, stdout=out,
            stderr=out, start_new_session=True, env=environment,
        )  # fmt: skip
    watcher = threading.Thread(target=_watch, args=(name, process, said), daemon=True)
    watcher.start()
    return process, watcher


def _watch(name: str, process: subprocess.Popen[bytes], said: Path) -> None:
    """Wait for a sink's end; say which one failed, and why."""
    if not (code := process.wait()):
        return
    lines = said.read_text(encoding="utf-8", errors="replace").split("\n")
    why = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
    if code < 0:
        why = f"ended by {signal.Signals(-code).name}; a run waits {END_SECONDS:g} s for its sinks"
    log.warning(
        "%s gets no more metrics (%s). Training goes on, metrics.jsonl has them all, and the same command sends what "
        "is missing (%s)", name, why, said,
    )  # fmt: skip


# --- a sink's process -------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """What a sink was sent, as RUN/sinks/NAME.json keeps it."""

    project: str
    id: str = field(default_factory=lambda: secrets.token_hex(5))
    rows: int = 0
    last: dict[str, int] = field(default_factory=dict)


class Sink:
    """A run of a package that sends by itself, and keeps what it has when rows are taken back."""

    run: Any

    def anew(self, sent: Sent) -> None:
        """All rows come again, from the first on."""

    def flush(self) -> None:
        """Show what was sent."""

    def end(self) -> None:
        self.run.finish()


class TensorBoard(Sink):
    """RUN/tensorboard/STAGE, under plain names: always what metrics.jsonl has, so it is written anew with that."""

    def __init__(self, run: RunFolder, tree: dict[str, Any], sent: Sent) -> None:
        self.folder, self.writers = run.path / "tensorboard", dict[str, Any]()

    def anew(self, sent: Sent) -> None:
        self.end()
        self.writers.clear()
        sent.last.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def send(self, row: dict[str, Any], values: dict[str, float], sent: Sent) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if row["stage"] not in self.writers:
            self.writers[row["stage"]] = EventFileWriter(str(self.folder / row["stage"]))
        scalars = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self.writers[row["stage"]].add_event(Event(wall_time=row["time"], step=row["step"], summary=scalars))

    def flush(self) -> None:
        for writer in self.writers.values():
            writer.flush()

    def end(self) -> None:
        for writer in self.writers.values():
            writer.close()


class Wandb(Sink):
    """A run of W&B; its own settings (WANDB_MODE=offline, WANDB_ENTITY, ...) come from the environment. Its step is the
    number of the row, so that segments which were written offline follow each other."""

    def __init__(self, run: RunFolder, tree: dict[str, Any], sent: Sent) -> None:
        import wandb

        quiet = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True)
        self.run = wandb.init(
            project=sent.project, id=sent.id, resume="allow", name=Path(tree["run_dir"]).name, config=tree,
            dir=str(run.path), settings=quiet,
        )  # fmt: skip
        for stage in tree["stages"]:
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def send(self, row: dict[str, Any], values: dict[str, float], sent: Sent) -> None:
        named = {f"{row['stage']}/{name}": value for name, value in (values | {"step": row["step"]}).items()}
        self.run.log(named, step=sent.rows, commit=True)


class Trackio(Sink):
    """A run of trackio; where to (TRACKIO_DIR, TRACKIO_SPACE_ID, ...) comes from the environment."""

    def __init__(self, run: RunFolder, tree: dict[str, Any], sent: Sent) -> None:
        import trackio

        self.run = trackio.init(
            project=sent.project, name=f"{Path(tree['run_dir']).name}-{sent.id}", config=tree, resume="allow",
            embed=False, auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def send(self, row: dict[str, Any], values: dict[str, float], sent: Sent) -> None:
        self.run.log({f"{row['stage']}/{name}": value for name, value in values.items()}, step=row["step"])


SINKS: dict[str, type[TensorBoard | Wandb | Trackio]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}
"""By the config's key."""


def follow(name: str, run: RunFolder) -> None:
    """Send rows until standard input is closed, then the rest."""
    tree = yaml.safe_load(run.config_path.read_text(encoding="utf-8"))
    kept, project = run.path / "sinks" / f"{name}.json", str(tree[name])
    with (run.path / "sinks" / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of a driver that is gone may still be sending
        found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        sent = Sent(**found) if found.get("project") == project else Sent(project)
        sink, tail, over = SINKS[name](run, tree, sent), Tail(run.metrics_path), False
        while not over:
            over = bool(select.select([sys.stdin], [], [], POLL_SECONDS)[0])
            rows, anew = tail.rows()
            if anew:
                sink.anew(sent)
            new = [row for row in rows if row["step"] > sent.last.get(row["stage"], 0)]
            for row in new:
                measured = ((name, value) for name, value in row.items() if name not in ("step", "time"))
                sink.send(row, {name: value for name, value in measured if isinstance(value, int | float)}, sent)
                sent.rows, sent.last[row["stage"]] = sent.rows + 1, row["step"]
            if new:
                sink.flush()
                write_atomic(kept, json.dumps(asdict(sent)))
        signal.alarm(ORPHAN_SECONDS)
        sink.end()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what ends a run must not end what it has still to send
    follow(sys.argv[1], RunFolder(sys.argv[2]))
