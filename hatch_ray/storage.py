"""A run whose home is a bucket (run_dir=s3://... or gs://...): pushed from the folder it is worked on in, and pulled.

A run appends to files, renames folders and makes a link, which a bucket cannot; so it is worked on in a folder, and
what changed there is pushed. The order of a push makes what the bucket holds at any moment a run that can be resumed:

1. progress.json is read, and which checkpoints and models there are is listed;
2. metrics and all other files, so that no checkpoint is there without the rows of its steps (a stage that goes on from
   an older one drops rows beyond it);
3. models, then checkpoints, the newest first, each one's manifest last: one without a manifest is passed over;
4. progress.json as it was read: it names no stage as done whose model is not there;
5. what was dropped here is dropped there.

HOME/.mirror.json    who pushes: {"writer", "host", "folder", "every"}. Another writer's is not pushed over.
FOLDER/.mirror.json  {"writer": of this folder, "files": name -> [bytes, mtime_ns] as pushed or pulled}

RUN/model, a link, is made again after a pull. Credentials and endpoint are pyarrow's own matter: from the environment.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG
from typing import Any

from hatch_ray.bucket import Bucket, Stat, StorageError, each
from hatch_ray.config_sections import StorageConfig
from hatch_ray.control import driver_is_gone, not_live, read_status
from hatch_ray.disk import when_there_is_room
from hatch_ray.manifest import MANIFEST
from hatch_ray.run_folder import STAGES, RunFolder, bucket_address, is_bucket, write_atomic

MARK = ".mirror.json"
LAST = ("progress.json", "status.json")
RESULTS = ("eval/", "benchmarks/", "report.html", "trace.json")
"""What commands write into a finished run: of two machines' the bucket has the one that was pushed last."""
DROPPED = ("bad_batches/", "tensorboard/")
LOOK_SECONDS = 2.0
log = logging.getLogger("hatch_ray")

Wants = Callable[[str], bool]


class TakenOverError(StorageError):
    """Another machine pushes to the bucket."""


def everything(_: str) -> bool:
    """For training."""
    return True


def for_status(name: str) -> bool:
    """For `hatch status`."""
    return name in ("config.yaml", "version.json", *LAST)


def for_report(name: str) -> bool:
    """For a report, a trace or the costs of a plan: no weights and no training images."""
    return not (_state(name) or name.startswith(("bad_batches/", "data/train/")))


def for_evaluation(name: str) -> bool:
    """For `hatch eval`: models and data."""
    return not ("/checkpoints/" in name or name.startswith("bad_batches/"))


def for_service(name: str) -> bool:
    """For `hatch serve` and `hatch ask`: models."""
    return for_status(name) or "/model/" in name


def local_run(place: str | Path, wants: Wants, root: str | Path = "") -> Path:
    """The folder of a run, wherever its home is: a bucket's is pulled as far as `wants` says, and not at all where this
    machine sees the folder that it is worked on in. root: the storage.work_dir to pull into.
    """
    return Home.of_reader(str(place), root).pull(wants) if is_bucket(place) else Path(place)


def driven_folder(place: str | Path, command: str) -> Path:
    """The folder that a run is worked on in. Raises StorageError where this machine does not see it.

    command: the one that needs it, for the words.
    """
    if not is_bucket(place):
        return Path(place)
    home = Home.of_reader(str(place))
    if not home.is_pushed_from:
        raise StorageError(
            f"{place} is not worked on here; give the command on its driver's machine, for example by "
            f"ray job submit ... -- hatch {command} {place} ..."
        )
    return home.folder


class Home:
    """A bucket's folder and the local one beside it."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = bucket_address(address), folder
        self.bucket = Bucket(self.address)
        record = _read_json(folder / MARK) or {"writer": uuid.uuid4().hex, "files": {}}
        self.writer: str = record["writer"]
        self._record: dict[str, Stat] = record["files"]
        self._every = 0.0
        self._silent_beat: int | None = None

    @classmethod
    def of(cls, address: str, root: str | Path = "") -> Home:
        """With its folder below storage.work_dir."""
        base = Path(root or StorageConfig().work_dir).expanduser().resolve()
        return cls(address, base / bucket_address(address).partition("://")[2])

    @classmethod
    def of_reader(cls, address: str, root: str | Path = "") -> Home:
        """With the folder that the run is worked on in, where this machine sees it."""
        home = cls.of(address, root)
        mark = home._mark()
        if mark is not None and mark["writer"] != home.writer:
            writers = Path(mark["folder"])
            if (_read_json(writers / MARK) or {}).get("writer") == mark["writer"]:
                return cls(address, writers)
        return home

    @property
    def is_pushed_from(self) -> bool:
        """Whether this folder is the one that the bucket's content comes from."""
        mark = self._mark()
        return mark is not None and mark["writer"] == self.writer

    # --- pull ------------------------------------------------------------------------------------------------------

    def pull(self, wants: Wants) -> Path:
        """Fetch what the folder lacks or has older; the folder. The one that is pushed from is as it should be.

        Raises StorageError when both have work that the other lacks.
        """
        mark, progress = self._mark(), self.bucket.read("progress.json")
        there = self._list()
        if mark is not None and mark["writer"] == self.writer:
            for name in there:  # what a killed push has left: dropped by the next one
                if _may_be_dropped(name) and not (self.folder / name).exists():
                    self._record.setdefault(name, [-1, -1])
            return self.folder
        if "config.yaml" not in there:
            return self.folder
        fetch = self._to_fetch({name: stat for name, stat in there.items() if wants(name)}, mark)
        each(lambda name: self._get(name, there[name]), fetch)
        if progress is not None and wants("progress.json"):
            write_atomic(self.folder / "progress.json", progress.decode())
            self._note("progress.json")
            self._link_model(json.loads(progress))
        self._save()
        return self.folder

    def _to_fetch(self, there: dict[str, Stat], mark: dict[str, Any] | None) -> list[str]:
        here, fetch = self._list_here(), []
        for name, stat in there.items():
            if here.get(name) == stat:
                self._record[name] = stat
            elif name not in here or self._record.get(name) == here[name] or name in LAST:
                fetch.append(name)
            elif not name.startswith(RESULTS):
                who = "another machine" if mark is None else f"{mark['host']} ({mark['folder']})"
                raise StorageError(
                    f"{self.address} was gone on with by {who}, and {self.folder} has work that is not there ({name}). "
                    f"To go on from the bucket move {self.folder} away; to keep what it has, go on in it as run_dir"
                )
        return [name for name in fetch if name != "progress.json"]

    def _link_model(self, progress: dict[str, dict[str, Any]]) -> None:
        done = [stage for stage in STAGES if progress.get(stage, {}).get("done")]
        if done and (self.folder / done[-1] / "model").is_dir():
            RunFolder(self.folder).link_model(done[-1])

    def _get(self, name: str, stat: Stat) -> None:
        path = self.folder / name
        temporary = path.with_name(f".{path.name}.pull")

        def fetch() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                self.bucket.get(name, stat[0], file)

        when_there_is_room(path, fetch)
        os.utime(temporary, ns=(stat[1], stat[1]))  # a pull that is killed finds by this what it has fetched
        os.replace(temporary, path)
        self._note(name)

    # --- push ------------------------------------------------------------------------------------------------------

    def pull_to_train(self) -> None:
        """Pull everything. Raises StorageError while the run is live in another folder, or `pull`'s."""
        mark = self._mark()
        if mark is not None and mark["writer"] != self.writer:
            self._refuse_live(mark)
        self.pull(everything)

    def take(self, every: float) -> None:
        """`pull_to_train`; from then on this folder is the one that is pushed from.

        every: seconds between pushes, by which others tell whether this one lives.
        """
        self._every = every
        self.pull_to_train()
        self._claim()

    def _refuse_live(self, mark: dict[str, Any]) -> None:
        """Another folder's run lives while its status changes."""
        status = self._status()
        if status is None or status["state"] != "running" or driver_is_gone(status):
            return
        if status["host"] != socket.gethostname():
            patience = 0.0 if self._silent_beat == status["beat"] else 3 * mark["every"] + 5
            if patience:
                log.warning(
                    "%s says that it is being trained on %s: waiting up to %.0f s for a sign of life",
                    self.address, status["host"], patience,
                )  # fmt: skip
            end = time.monotonic() + patience
            while (self._status() or status)["beat"] == status["beat"]:
                if time.monotonic() >= end:
                    self._silent_beat = status["beat"]
                    return
                time.sleep(LOOK_SECONDS)
        raise StorageError(
            f"{self.address} is being trained by process {status['pid']} on {status['host']} ({mark['folder']}); stop "
            "that one first, or choose another run_dir"
        )

    def _status(self) -> dict[str, Any] | None:
        text = self.bucket.read("status.json")
        return None if text is None else json.loads(text)

    def _claim(self) -> None:
        mark = {"writer": self.writer, "host": socket.gethostname(), "folder": str(self.folder), "every": self._every}
        self.bucket.write(MARK, json.dumps(mark).encode())

    def _check(self) -> None:
        """Raise TakenOverError where another folder has become the one that is pushed from."""
        mark = self._mark()
        if mark is None:
            self._record.clear()  # a new home, or one that was emptied
            self._claim()
        elif mark["writer"] != self.writer:
            raise TakenOverError(
                f"{self.address} is now pushed to by {mark['host']} ({mark['folder']}); nothing more is pushed from "
                f"{self.folder}, which keeps this run's work. Two runs cannot share a run_dir"
            )

    def push(self) -> int:
        """Push what changed, in the order above; how many files that were. Files that vanish meanwhile are left out."""
        if not (self.folder / "config.yaml").is_file():
            return 0
        progress = self._whole("progress.json")
        self._check()
        try:
            self._save()  # who writes, before anything is there by this name
            here = self._list_here()
            changed = [name for name, stat in here.items() if self._record.get(name) != stat and name not in LAST]
            pushed = each(self._put, [name for name in changed if not _state(name)])
            for state in sorted({_state(name) for name in changed} - {""}, key=_turn):
                pushed += self._put_state(state, [name for name in changed if _state(name) == state])
            if progress is not None and self._record.get("progress.json") != progress[1]:
                self._check()
                self._write("progress.json", *progress)
                pushed += 1
            if self._record.get("status.json") != here.get("status.json"):
                pushed += self._put("status.json")
            self._drop()
        finally:
            self._save()
        return pushed

    def put_back(self, *names: str) -> int:
        """Push the results of a command that begin with these names; how many."""
        here = self._list_here()
        pushed = each(
            self._put, [name for name in here if name.startswith(names) and here[name] != self._record.get(name)]
        )
        if not_live(run := RunFolder(self.folder), read_status(run)):  # else its driver keeps the record
            self._save()
        return pushed

    def _put_state(self, state: str, changed: list[str]) -> int:
        """A model, or a checkpoint whose manifest comes last, and only when all that it lists is there."""
        last = state + MANIFEST
        if last not in changed:
            return each(self._put, changed)
        if last in self._record:  # the same step, taken again
            self._delete(last)
        manifest = self._whole(last)
        pushed = each(self._put, [name for name in changed if name != last])
        if manifest is None:
            return pushed
        listed = json.loads(manifest[0])["files"]
        if any(self._record.get(state + name, [-1])[0] != entry["bytes"] for name, entry in listed.items()):
            return pushed
        self._check()
        self._write(last, *manifest)
        return pushed + 1

    def _drop(self) -> None:
        """Delete what is gone here; a stage's checkpoints only once a newer one is whole there."""
        gone = [name for name in self._record if _may_be_dropped(name) and not (self.folder / name).exists()]
        for name in sorted(gone, key=lambda name: not name.endswith(MANIFEST)):
            stage = name.partition("/checkpoints/")[0] + "/checkpoints/"
            whole = any(
                other.startswith(stage) and other.endswith("/" + MANIFEST) and (self.folder / other).exists()
                for other in self._record
            )
            if whole or "/checkpoints/" not in name:
                self._delete(name)

    def _put(self, name: str) -> bool:
        """One file as it is now; whether it was there."""
        try:
            file = (self.folder / name).open("rb")
        except FileNotFoundError:
            return False
        with file:
            found = os.fstat(file.fileno())
            self.bucket.put(name, file)
        self._record[name] = [found.st_size, found.st_mtime_ns]
        return True

    def _whole(self, name: str) -> tuple[bytes, Stat] | None:
        """A small file and what it was when it was read."""
        try:
            with (self.folder / name).open("rb") as file:
                found = os.fstat(file.fileno())
                return file.read(), [found.st_size, found.st_mtime_ns]
        except FileNotFoundError:
            return None

    # --- the two sides ---------------------------------------------------------------------------------------------

    def _list(self) -> dict[str, Stat]:
        return {name: stat for name, stat in self.bucket.list().items() if not _stays_out(name)}

    def _list_here(self) -> dict[str, Stat]:
        found = {}
        for folder, _, files in os.walk(self.folder):
            for file in files:
                name = os.path.relpath(os.path.join(folder, file), self.folder)
                if not _stays_out(name) and (stat := _stat(self.folder / name)) is not None:
                    found[name] = stat
        return found

    def _mark(self) -> dict[str, Any] | None:
        text = self.bucket.read(MARK)
        return None if text is None else json.loads(text)

    def _write(self, name: str, content: bytes, stat: Stat) -> None:
        self.bucket.write(name, content)
        self._record[name] = stat

    def _delete(self, name: str) -> None:
        self.bucket.delete(name)
        self._record.pop(name, None)

    def _note(self, name: str) -> None:
        stat = _stat(self.folder / name)
        assert stat is not None, "it was just written"
        self._record[name] = stat

    def _save(self) -> None:
        if self.folder.is_dir():
            write_atomic(self.folder / MARK, json.dumps({"writer": self.writer, "files": self._record}))


def _stays_out(name: str) -> bool:
    """Temporary files, what is asked of a live run, a trainer's scratch, stacks, states that were set aside."""
    parts = name.split("/")
    scratch = len(parts) > 1 and parts[1] == "trainer"
    aside = any(part.startswith((".", "bad-step-")) for part in parts)
    return scratch or aside or parts[0] in ("control", "stacks")


def _state(name: str) -> str:
    """The checkpoint or the stage's model that a file belongs to, with a slash at its end; else empty."""
    parts = name.split("/")
    if len(parts) > 2 and parts[1] == "model":
        return "/".join(parts[:2]) + "/"
    return "/".join(parts[:3]) + "/" if len(parts) > 3 and parts[1] == "checkpoints" else ""


def _turn(state: str) -> tuple[bool, int]:
    """Models, then checkpoints from the newest to the oldest."""
    name = state.split("/")[-2]
    return name != "model", -int(name.removeprefix("step-")) if name != "model" else 0


def _may_be_dropped(name: str) -> bool:
    return "/checkpoints/" in name or name.startswith(DROPPED)


def _stat(path: Path) -> Stat | None:
    """None for what is no file, or a link."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return [found.st_size, found.st_mtime_ns] if S_ISREG(found.st_mode) else None


def _read_json(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
