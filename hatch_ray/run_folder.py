"""The folder of one run: where each thing lies, and how it is written so that a killed process leaves nothing broken.

RUN/config.yaml              the resolved config
RUN/version.json             {"hatch_ray": the version that wrote last, "format": of this layout}
RUN/progress.json            stage -> {"done": bool, "step": int}
RUN/metrics.jsonl            one object a line: {"stage", "step", "time", name: value, ...}
RUN/tensorboard/<stage>/     the same scalars, written meanwhile (`hatch_ray.sinks`)
RUN/sinks/<name>.json        what a sink of metrics was sent; RUN/sinks/<name>.log what its package says
RUN/wandb/                   of W&B: what it writes itself
RUN/data/{train,heldout}/    datasets built for this run (data.root points elsewhere when given)
RUN/<stage>/model/           the stage's result, a Hugging Face folder
RUN/<stage>/checkpoints/     the stage's resumable states
RUN/<stage>/gauge/           of PaStA: what its input and its result could do, question by question
RUN/samples/<stage>.jsonl    completions with every reward term
RUN/ledger.jsonl             every prompt group of GRPO, what it earned: trained once, redrawn, or set aside
RUN/experience.jsonl         what the driver knows of each GRPO step: rewards, lengths, seconds
RUN/recoveries.jsonl         every process that was lost, and what it cost
RUN/status.json              what a live run says of itself, every second (`hatch status`)
RUN/control/                 what is asked of a live run (`hatch scale`)
RUN/spans.jsonl              when each part of the latest GRPO steps was at work (`hatch trace`)
RUN/bad_batches/             batches of GRPO with a loss or gradient that was not finite (`tools.replay`)
RUN/eval/<name>.json         tables; RUN/eval/<name>.jsonl their rows
RUN/.stop                    there while a run that SIGTERM asked to stop saves
RUN/timing.json              of `hatch demo`: where its seconds went
RUN/model                    link to the last finished stage's model
RUN/report.html
RUN/.mirror.json             of a run in a bucket: what was pushed (`hatch_ray.storage`)
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hatch_ray.disk import when_there_is_room

ASKS = "asks_"
"""Before the names of a sampler's numbers in the metrics of a step."""


def is_bucket(place: str | Path) -> bool:
    """Whether a run's place is a bucket, which `hatch_ray.storage` brings to a folder."""
    return str(place).startswith(("s3://", "gs://"))


def bucket_address(place: str) -> str:
    """The address of a run in a bucket, without a slash at its end. Raises ValueError for any other."""
    if not re.fullmatch(r"(s3|gs)://[\w-][\w.-]*(/[\w=+-][\w.=+-]*)+/?", place, re.ASCII):
        raise ValueError(
            "a run in a bucket is s3://BUCKET/FOLDER or gs://BUCKET/FOLDER, of letters, digits and ._-=+ alone; keys "
            "and endpoint come from the environment (docs/cluster.md#shared-storage)"
        )
    return place.rstrip("/")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write to a temporary file beside `path`, then rename: a reader sees the old or the new file, never half.

    Waits while the disk is full (`hatch_ray.disk`).
    """

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise

    when_there_is_room(path, write)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows in place of all that the file has, as `write_atomic`."""
    write_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def append_jsonl(path: Path, rows: list[dict[str, Any]], durable: bool = False) -> None:
    """Append rows, all or none of them. A last line that a killed process left unfinished is dropped first.

    durable: they are on the disk when this returns, whatever happens to the machine. Waits while the disk is full
    (`hatch_ray.disk`). A file has one process that appends to it.
    """
    data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            _fix_last_line(file)
            former = file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
            except BaseException:
                file.truncate(former)
                raise
            if durable:
                os.fsync(file.fileno())

    when_there_is_room(path, write)


def _fix_last_line(file: Any) -> None:
    """End a file's last line where only its line break is missing; cut it off where more is."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    text = file.read()
    start = text.rfind(b"\n") + 1
    if _is_row(text[start:]):
        file.write(b"\n")
    else:
        file.truncate(start)


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def drop_steps(path: Path, step: int) -> None:
    """Cut off a file's rows from the first one of this step on: a resumed run takes those steps again. The rows of an
    earlier step come before those of a later one; they are read one at a time. Raises ValueError for a broken line.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        place = 0
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n") and not _is_row(line):
                break
            try:
                if json.loads(line)["step"] >= step:
                    break
            except (ValueError, KeyError) as error:
                raise ValueError(f"{path}, line {number} is no row with a step ({error}); fix or delete it") from None
            place += len(line)
        file.truncate(place)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows of a JSONL file; an absent file has none.

    A last line without its line break that is no whole row was cut off by a kill, and is left out: `append_jsonl` drops
    it too. Raises ValueError naming any other line that is not JSON.
    """
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    if _is_row(last):
        lines.append(last)
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not JSON ({error}); fix or delete the line") from None
    return rows


class Tail:
    """Follows a JSONL file to which another process appends."""

    def __init__(self, path: Path) -> None:
        self.path, self._place, self._file = path, 0, -1

    def rows(self) -> tuple[list[dict[str, Any]], bool]:
        """The whole rows since the last call; and whether these are all from the first on, because the file is another
        one than then (`RunFolder.forget_after`).
        """
        if not self.path.exists():
            return [], False
        with self.path.open("rb") as file:
            if anew := (number := os.fstat(file.fileno()).st_ino) != self._file:
                self._place, self._file = 0, number
            file.seek(self._place)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._place += len(whole)
        return [json.loads(line) for line in whole.splitlines()], anew


class RunFolder:
    """Paths and small state of one run."""

    def __init__(self, path: str | Path) -> None:
        if is_bucket(path):
            raise ValueError(f"{path} is a bucket, where a folder is needed; copy the run, or name a folder")
        self.path = Path(path).expanduser().resolve()
        self.config_path = self.path / "config.yaml"
        self.version_path = self.path / "version.json"
        self.progress_path = self.path / "progress.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.report_path = self.path / "report.html"
        self.status_path = self.path / "status.json"
        self.timing_path = self.path / "timing.json"
        self.stop_path = self.path / ".stop"
        self.ledger = self.path / "ledger.jsonl"
        self.experience = self.path / "experience.jsonl"
        self.recoveries = self.path / "recoveries.jsonl"
        self.spans = self.path / "spans.jsonl"
        self.control = self.path / "control"
        self.bad_batches = self.path / "bad_batches"
        self.model = self.path / "model"

    def data(self, split: str, section: str = "data") -> Path:
        """The dataset that was built for a section of the config."""
        return self.path / "data" / split if section == "data" else self.path / "data" / section / split

    def stage_model(self, stage: str) -> Path:
        return self.path / stage / "model"

    def checkpoints(self, stage: str) -> Path:
        return self.path / stage / "checkpoints"

    def samples(self, stage: str) -> Path:
        return self.path / "samples" / f"{stage}.jsonl"

    def moved(self, path: str) -> str:
        """A data file that a row names by its whole path, where it is now if the folder was at another place then."""
        here = self.path / "data" / path.rpartition("/data/")[2]
        return str(here) if not Path(path).exists() and here.exists() else path

    def evaluation(self, name: str) -> Path:
        return self.path / "eval" / f"{name}.json"

    def progress(self) -> dict[str, dict[str, Any]]:
        return json.loads(self.progress_path.read_text()) if self.progress_path.exists() else {}

    def set_progress(self, stage: str, *, step: int, done: bool) -> None:
        write_atomic(self.progress_path, json.dumps(self.progress() | {stage: {"step": step, "done": done}}, indent=2))

    def log(self, stage: str, step: int, values: dict[str, float], warnings: Sequence[str] = ()) -> None:
        """One line of metrics. Non-finite values are written as null with their name kept in "non_finite".

        `warnings`: what there is to say about the step, kept in "warnings".
        """
        bad = [name for name, value in values.items() if value != value or value in (float("inf"), float("-inf"))]
        row: dict[str, Any] = {"stage": stage, "step": step, "time": round(time.time(), 3)}
        row |= {name: None if name in bad else value for name, value in values.items()}
        if bad:
            row["non_finite"] = bad
        if warnings:
            row["warnings"] = list(warnings)
        append_jsonl(self.metrics_path, [row])

    def forget_after(self, stage: str, step: int) -> None:
        """Drop a stage's metrics beyond `step`: a resumed stage takes those steps again."""
        rows = read_jsonl(self.metrics_path)
        kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
        if len(kept) < len(rows):
            write_jsonl(self.metrics_path, kept)

    def link_model(self, stage: str) -> None:
        """Point RUN/model at the stage's result, atomically."""
        temporary = self.path / f".model.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(Path(stage) / "model")
        os.replace(temporary, self.model)
