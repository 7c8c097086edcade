"""A run whose home is a bucket (run_dir=s3://... or gs://...): worked on in a folder, pushed from there, and pulled.

A run appends to files, renames folders and makes a link, which a bucket cannot. The order of a push makes what the
bucket holds at any moment a run that can be resumed:

1. progress.json is read, then checkpoints are listed, then all other files;
2. a checkpoint of the bucket that is newer than all here is withdrawn: the run went back and drops that one's rows;
3. all other files, so that no checkpoint is there without the rows of its steps;
4. checkpoints, the newest first, each one's manifest last: one without a manifest is passed over;
5. progress.json as it was read: it names no stage as done whose model is not there; then status.json;
6. what was dropped here is dropped there, an older checkpoint once a newer one is whole there.

HOME/.mirror.json    who pushes: {"writer", "host", "folder", "every"}. Another writer's is not pushed over.
FOLDER/.mirror.json  {"writer": of this folder, "files": name -> [bytes, mtime_ns] as pushed or pulled}
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hatch_ray.config_sections import StorageConfig
from hatch_ray.disk import when_there_is_room
from hatch_ray.manifest import MANIFEST
from hatch_ray.run_folder import RunFolder, bucket_address, is_bucket, write_atomic

MARK, PROGRESS, STATUS = ".mirror.json", "progress.json", "status.json"
RESULTS = ("eval/", "benchmarks/", "report.html", "trace.json")
"""What commands write into a finished run: of two machines' the bucket has the one that was pushed last."""
STAYS_OUT = re.compile(r"(.*/)?(\.|bad-step-)|(control|stacks|model|wandb/latest-run)/|[^/]+/trainer/|.*\.pull$").match
DROPPED = re.compile(r"[^/]+/checkpoints/step-\d+/|bad_batches/[^/]+/|tensorboard/.+").match
"""What a run drops again, each as a whole."""
WHOLE = re.compile(rf"[^/]+/checkpoints/step-\d+/{re.escape(MANIFEST)}$").match
OPTIONS = {"s3": "allow_delayed_open=true", "gs": "retry_limit_seconds=60"}
"""pyarrow's: a small file is one request; Cloud Storage is tried again for so long (S3 a few times) before it fails."""
THREADS, BLOCK, LOOK_SECONDS, NEVER = 8, 8 * 2**20, 2.0, [-1, -1]
log = logging.getLogger("hatch_ray")

SMALL = r"(config\.yaml|(version|progress|status)\.json)$"
WANTS = {
    "everything": re.compile(""),
    "status": re.compile(SMALL),
    "report": re.compile(r"(?!bad_batches/|data/train/|[^/]+/(checkpoints|model)/)"),
    "evaluation": re.compile(r"(?!bad_batches/|[^/]+/checkpoints/)"),
    "service": re.compile(rf"{SMALL}|[^/]+/model/"),
    "replay": re.compile(rf"{SMALL}|[^/]+/model/|bad_batches/"),
}
"""What a command needs -> names of the files."""


class StorageError(ValueError):
    """The bucket cannot be reached or written, or holds what must not be written over."""


class TakenOverError(StorageError):
    """Another machine pushes to the bucket."""


def local_run(place: str | Path, wants: str, root: str | Path = "") -> Path:
    """The folder of a run, wherever its home is: of a bucket what WANTS[wants] names is pulled, and nothing where this
    machine sees the folder that it is worked on in. root: the storage.work_dir to pull into.
    """
    if not is_bucket(place):
        return Path(place)
    home = Home(str(place), root)
    return home.worked_on() or home.pull(wants)


def driven_folder(place: str | Path, command: str) -> Path:
    """The folder that a run is worked on in. Raises StorageError for the command where this machine does not see it."""
    folder = Home(str(place)).worked_on() if is_bucket(place) else Path(place)
    if folder is None:
        where = f"on its driver's machine, for example by ray job submit ... -- hatch {command} {place} ..."
        raise StorageError(f"{place} is not worked on here; give the command {where}")
    return folder


class Home:
    """A bucket's folder and the local one, below `root` (storage.work_dir) unless it is given.

    every: seconds between pushes, by which others tell whether this one lives. What goes wrong on the bucket's side is
    a StorageError of one line.
    """

    def __init__(self, address: str, root: str | Path = "", folder: Path | None = None, every: float = 0.0) -> None:
        from pyarrow import fs  # heavy, and needed for buckets alone

        self._fs, self.address, self.every = fs, bucket_address(address), every
        scheme, _, path = self.address.partition("://")
        self.folder = folder or Path(root or StorageConfig().work_dir).expanduser().resolve() / path
        emulated = scheme == "gs" and "CLOUD_STORAGE_EMULATOR_ENDPOINT" in os.environ  # which asks for no keys
        with self._talk():
            files, _ = fs.FileSystem.from_uri(f"{scheme}://{'anonymous@' * emulated}{path}?{OPTIONS[scheme]}")
        self.bucket = fs.SubTreeFileSystem(path, files)
        self.local = fs.SubTreeFileSystem(str(self.folder), fs.LocalFileSystem())
        record = _json(self.folder / MARK) or {"writer": os.urandom(16).hex(), "files": {}}
        self._writer: str = record["writer"]
        self._record: dict[str, list[int]] = record["files"]
        self._seen: tuple[bytes | None, ...] = ()

    def worked_on(self) -> Path | None:
        """The folder that the bucket's content comes from, where this machine sees it."""
        mark = self._mark()
        folder = Path(mark.get("folder", "."))
        return folder if mark and _json(folder / MARK).get("writer") == mark["writer"] else None

    def pull(self, wants: str) -> Path:
        """Fetch what the folder lacks or has older; the folder. The one that is pushed from is as it should be.

        Raises StorageError when both have work that the other lacks.
        """
        mark, here = self._mark(), self._list(self.local)
        small = {name: self.read(name) for name in (PROGRESS, STATUS)}  # before the models that progress.json names
        there = {
            name: stat
            for name, stat in self._list(self.bucket).items()
            if WANTS[wants].match(name) and name not in small
        }
        if mark.get("writer") == self._writer or "config.yaml" not in there:
            return self.folder
        self._record |= {name: stat for name, stat in there.items() if here.get(name) == stat}
        fetch = [name for name in there if name not in here or here[name] == self._record.get(name) != there[name]]
        for name in there.keys() - set(fetch):
            if here[name] != there[name] and not name.startswith(RESULTS):
                raise StorageError(
                    f"{self.address} was continued on {mark.get('host', 'another machine')}, and {self.folder} has "
                    f"work that is not there ({name}). To continue from the bucket move {self.folder} away; to keep "
                    "what it has, use it as run_dir"
                )
        each(lambda name: self.get(name, there[name][1]), fetch)
        for name, content in small.items():
            if content is not None:
                write_atomic(self.folder / name, content.decode())
                self._record[name] = _stat(self.folder / name)
        run = RunFolder(self.folder)
        done = [stage for stage, state in run.progress().items() if state["done"]]
        if done and run.stage_model(done[-1]).is_dir():
            run.link_model(done[-1])
        self._save()
        return self.folder

    def pull_to_train(self) -> None:
        """Pull everything. Raises StorageError as `pull`, and while the status of a run in another folder changes."""
        mark, status = self._mark(), self.read(STATUS)
        if mark.get("writer", self._writer) != self._writer and json.loads(status or b"{}").get("state") == "running":
            where, end = f"{mark['host']} ({mark['folder']})", time.monotonic() + 3 * mark["every"] + 5
            log.warning("%s: waiting for a sign of life of its run on %s", self.address, where)
            while time.monotonic() < end:
                if self.read(STATUS) != status:
                    raise StorageError(
                        f"{self.address} is being trained on {where}; stop it, or choose another run_dir"
                    )
                time.sleep(LOOK_SECONDS)
        self._seen = self.read(MARK), self.read(STATUS)
        self.pull("everything")

    def take(self) -> None:
        """From now on this folder is the one that is pushed from. Raises TakenOverError where another one is, unless it
        pushed nothing since `pull_to_train`.
        """
        mark = self._mark()
        if not mark:
            self._record.clear()  # a new home, or one that was emptied
        elif mark["writer"] == self._writer:
            return
        elif self._seen != (self.read(MARK), self.read(STATUS)):
            raise TakenOverError(
                f"{self.address} is now pushed to by {mark['host']} ({mark['folder']}); nothing more is pushed from "
                f"{self.folder}, which keeps this run's work. Two runs cannot share a run_dir"
            )
        mark = {"writer": self._writer, "host": os.uname().nodename, "folder": str(self.folder), "every": self.every}
        self.write(MARK, json.dumps(mark).encode())

    def push(self) -> None:
        """Push what changed, in the order above. Files that vanish meanwhile are left out."""
        if not (self.folder / STATUS).is_file():
            return  # the training has not begun: a first start that fails leaves nothing behind
        self.take()
        progress = self.folder / PROGRESS
        stat, content = (_stat(progress), progress.read_bytes()) if progress.is_file() else (None, b"")
        states = {name: stat for name, stat in self._list(self.local).items() if "/checkpoints/" in name}
        here = {name: stat for name, stat in self._list(self.local).items() if "/checkpoints/" not in name} | states
        changed = [name for name in here if here[name] != self._record.get(name) and name not in (PROGRESS, STATUS)]
        self._record = dict.fromkeys(changed, NEVER) | self._record
        self._save()  # who writes, and what may be there, before it is
        try:
            for name in filter(WHOLE, self._gone()):
                state = (self.folder / name).parent
                if _step(state) > max(map(_step, state.parent.glob("step-*")), default=-1):
                    self.delete(name)
            each(self.put, (name for name in changed if name not in states))
            for last in sorted(filter(WHOLE, changed), reverse=True):
                files = [name for name in changed if name.startswith(last.removesuffix(MANIFEST)) and name != last]
                if all(each(self.put, files)):
                    self.take()
                    self.put(last)
            if stat is not None and stat != self._record.get(PROGRESS):
                self.take()
                self.write(PROGRESS, content)
                self._record[PROGRESS] = stat
            if here[STATUS] != self._record.get(STATUS):
                self.put(STATUS)
            gone = self._gone()  # before what is whole there: a checkpoint that is dropped meanwhile is neither
            whole = [name for name in filter(WHOLE, self._record) if self._record[name] != NEVER]
            stages = {name.split("/")[0] for name in whole if (self.folder / name).exists()}
            for name in sorted(gone, key=lambda name: not WHOLE(name)):
                if "/checkpoints/" not in name or name.split("/")[0] in stages:
                    self.delete(name)
        finally:
            self._save()

    def put_back(self, *names: str) -> None:
        """Push the results of a command that begin with these names."""
        here = self._list(self.local)
        each(self.put, (name for name in here if name.startswith(names) and here[name] != self._record.get(name)))
        if self._mark().get("writer") != self._writer:  # else its driver keeps the record
            self._save()

    def _gone(self) -> list[str]:
        """What was dropped here and not yet there."""
        return [name for name in self._record if (what := DROPPED(name)) and not (self.folder / what[0]).exists()]

    def _mark(self) -> dict[str, Any]:
        mark: dict[str, Any] = json.loads(self.read(MARK) or b"{}")
        return mark

    def _save(self) -> None:
        if self.folder.is_dir():
            write_atomic(self.folder / MARK, json.dumps({"writer": self._writer, "files": self._record}))

    def _list(self, files: Any) -> dict[str, list[int]]:
        with self._talk():
            found = files.get_file_info(self._fs.FileSelector("", recursive=True, allow_not_found=True))
        return {info.path: [info.size, info.mtime_ns] for info in found if info.is_file and not STAYS_OUT(info.path)}

    def read(self, name: str) -> bytes | None:
        """A small file of the bucket as a whole, None where there is none."""
        with self._talk(), suppress(FileNotFoundError):
            while True:  # it may be written again between the request for its size and the one for it
                with self.bucket.open_input_file(name) as file:
                    content = bytes(file.read_at(file.size(), 0))
                if self.bucket.get_file_info(name).size == len(content):
                    return content
        return None

    def write(self, name: str, content: bytes) -> None:
        """A small file of the bucket."""
        with self._talk(), self.bucket.open_output_stream(name) as file:
            file.write(content)

    def get(self, name: str, time_ns: int) -> None:
        """Fetch one file, unless it was dropped meanwhile. Its time tells the next pull, if this one is killed."""
        path, temporary = self.folder / name, f"{name}.pull"
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._talk(), suppress(FileNotFoundError):
            copy = partial(self._fs.copy_files, name, temporary, self.bucket, self.local, chunk_size=BLOCK)
            when_there_is_room(path, copy)
            os.utime(self.folder / temporary, ns=(time_ns, time_ns))
            os.replace(self.folder / temporary, path)
            self._record[name] = _stat(path)

    def put(self, name: str) -> bool:
        """Push one file as it is now; False where it is gone."""
        path = self.folder / name
        try:
            stat = _stat(path)
            with self._talk():
                self._fs.copy_files(name, name, self.local, self.bucket, chunk_size=BLOCK)
        except FileNotFoundError:
            if path.exists():
                raise
            return False
        self._record[name] = stat
        return True

    def delete(self, name: str) -> None:
        """Delete a file of the bucket, unless it is gone already."""
        with self._talk(), suppress(FileNotFoundError):
            self.bucket.delete_file(name)
        self._record.pop(name, None)

    @contextmanager
    def _talk(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            text = " ".join(str(error).split())[:400]
            raise StorageError(f"{self.address}: {text} (keys and endpoint: docs/cluster.md#shared-storage)") from error


def each(act: Callable[[str], Any], names: Iterable[str]) -> list[Any]:
    """`act` on each name, several at a time. The first failure ends it."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="bucket") as pool:
        return list(pool.map(act, names))


def _stat(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _step(state: Path) -> int:
    return int(state.name.removeprefix("step-"))


def _json(path: Path) -> dict[str, Any]:
    """Empty where there is none, or none that may be read."""
    with suppress(FileNotFoundError, PermissionError):
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found
    return {}
