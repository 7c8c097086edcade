"""What a run writes is whole, whatever happens: kills, full disks, other versions."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hatch_ray import __version__, disk
from hatch_ray.config import Config, ConfigError, make_config, save_config
from hatch_ray.disk import clear_leftovers, is_full, replace_folder, when_there_is_room
from hatch_ray.run_folder import RunFolder, append_jsonl, read_jsonl, write_atomic
from hatch_ray.run_version import compare_with_run, write_version

ROWS = [{"step": step, "text": "grün " * 20} for step in range(3)]


# --- lines that a kill cut off ----------------------------------------------------------------------------------------


@given(kept=st.integers(min_value=0))
def test_a_cut_last_line_is_dropped_by_readers_and_writers(tmp_path_factory: pytest.TempPathFactory, kept: int) -> None:
    """A file cut at any byte: the whole rows are read, and the next row is neither lost nor glued to the rest."""
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    append_jsonl(path, ROWS)
    whole = path.read_bytes()
    kept %= len(whole) + 1
    path.write_bytes(whole[:kept])
    # A row whose line break alone is missing is whole.
    expected = [row for row, end in zip(ROWS, line_ends(whole), strict=True) if end <= kept]
    assert read_jsonl(path) == expected
    append_jsonl(path, [{"step": 9}])
    assert read_jsonl(path) == [*expected, {"step": 9}]
    assert path.read_bytes().endswith(b'{"step": 9}\n')


def line_ends(text: bytes) -> list[int]:
    """Where each row ends, its line break not counted."""
    return [index for index, byte in enumerate(text) if byte == ord("\n")]


def test_a_damaged_line_inside_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is not JSON"):
        read_jsonl(path)
    assert read_jsonl(tmp_path / "absent.jsonl") == []


# --- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once, and tells every time it may anew in each test."""
    monkeypatch.setattr(disk, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(disk, "_told", {})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine lets nobody mount a small file system: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.usefixtures("impatient")
def test_a_full_disk_pauses_every_writer_and_loses_nothing(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    from actors.runtime.checkpoints import Checkpoints

    state, rows = small_disk / "progress.json", small_disk / "rows.jsonl"
    states = Checkpoints(small_disk / "checkpoints")
    write_atomic(state, "good")
    append_jsonl(rows, ROWS)
    states.write(1, lambda folder: (folder / "state.json").write_text("good"))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        fill_up(ballast)
    large = [{"step": step, "text": "x" * 300} for step in range(30)]
    writers = [
        threading.Thread(target=write_atomic, args=(state, "n" * 5000)),
        threading.Thread(target=append_jsonl, args=(rows, large)),
        threading.Thread(
            target=states.write, args=(2, lambda folder: (folder / "state.json").write_bytes(b"x" * 9000))
        ),
    ]
    for writer in writers:
        writer.start()
    time.sleep(0.3)
    assert all(writer.is_alive() for writer in writers)
    assert state.read_text() == "good"
    assert [row["step"] for row in read_jsonl(rows)] == [0, 1, 2]
    assert [path.name for path in states.all()] == ["step-000001"]
    told = [record.message for record in caplog.records]
    assert len(told) == 1, "at most once a minute, however many files wait"
    assert "the disk is full" in told[0] and str(small_disk) in told[0] and "MB are free" in told[0]
    ballast.unlink()
    for writer in writers:
        writer.join(timeout=20)
    assert not any(writer.is_alive() for writer in writers)
    assert state.read_text() == "n" * 5000
    assert read_jsonl(rows) == [*ROWS, *large]
    assert states.step(states.latest() or Path()) == 2
    assert sorted(path.name for path in small_disk.iterdir()) == ["checkpoints", "progress.json", "rows.jsonl"]
    assert sorted(path.name for path in states.folder.iterdir()) == ["step-000001", "step-000002"]
    assert sum("goes on after a pause" in record.message for record in caplog.records) == 3


class FullFile:
    """A file on a disk with room for `room` bytes more, `waits` times; then there is enough."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int, waits: int) -> None:
        self.room, self.waits = room, waits
        monkeypatch.setattr(Path, "open", self.opened(Path.open))

    def opened(self, original):
        def wrapped(path, *words, **options):
            file = original(path, *words, **options)
            return Throttled(file, self) if self.waits else file

        return wrapped


class Throttled:
    """Stands in for the kernel, which writes what fits and then refuses."""

    def __init__(self, file, disk: FullFile) -> None:
        self.file, self.disk = file, disk

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        if self.disk.room == 0:
            self.disk.waits -= 1
            self.disk.room = 7
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        written = self.file.write(data[: self.disk.room])
        self.disk.room -= written
        return written


@pytest.mark.usefixtures("impatient")
def test_a_partly_written_line_is_taken_back_before_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, ROWS)
    FullFile(monkeypatch, room=25, waits=3)
    append_jsonl(path, [{"step": 3, "text": "x" * 100}])
    assert [row["step"] for row in read_jsonl(path)] == [0, 1, 2, 3]
    assert path.read_bytes().count(b'"step": 3') == 1
    assert "the disk quota is used up" in caplog.records[0].message


@pytest.mark.usefixtures("impatient")
def test_only_a_full_disk_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tries = []

    def write() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return "written"

    with caplog.at_level(logging.WARNING):
        assert when_there_is_room(tmp_path / "x", write) == "written"
    assert len(tries) == 3
    assert len(caplog.records) == 2  # the pause once, and its end

    def forbidden() -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        when_there_is_room(tmp_path / "x", forbidden)


def test_how_rust_and_torch_name_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rust = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    torch = RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0")
    assert is_full(rust, tmp_path)
    monkeypatch.setattr(disk, "free_bytes", lambda path: 10**12)
    assert not is_full(torch, tmp_path)
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
    assert is_full(torch, tmp_path)
    assert not is_full(RuntimeError("shape mismatch"), tmp_path)


def test_a_failed_write_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(PermissionError):
        write_atomic(tmp_path / "x.json", "{}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", range(4))
def test_a_folder_is_whole_and_alone_after_the_start_that_follows_a_killed_replacement(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each rename and each removal in turn; the old folder or the new one is there, and nothing else."""

    class Killed(BaseException):
        pass

    calls = count()

    def dying(act: Callable[..., None]) -> Callable[..., None]:
        def call(*words: Any, **options: Any) -> None:
            if next(calls) == moment:
                raise Killed
            act(*words, **options)

        return call

    for folder in (tmp_path / "grpo", tmp_path / "grpo" / "checkpoints"):
        new, target = folder / ".model.4711", folder / "model"
        for path in (new, target):
            path.mkdir(parents=True)
            (path / "config.json").write_text("new" if path == new else "old")
        calls = count()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dying(os.replace))
            patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
            with pytest.raises(Killed):
                replace_folder(new, target)
        clear_leftovers(tmp_path)
        assert (target / "config.json").read_text() == ("old" if moment < 3 else "new")
        assert sorted(path.name for path in folder.iterdir() if path.name != "checkpoints") == ["model"]


# --- run folders of other versions and configs ------------------------------------------------------------------------

FREE = {"run_dir", "learner"}


@pytest.fixture
def made(tmp_path: Path) -> tuple[Config, RunFolder]:
    """A run folder that this version made."""
    config, run = make_config({"run_dir": str(tmp_path / "run")}), RunFolder(tmp_path / "run")
    save_config(config, run.config_path)
    write_version(run)
    return config, run


def change(run: RunFolder, section: str, **settings: object) -> None:
    """Set keys of a saved config; None deletes one."""
    tree = yaml.safe_load(run.config_path.read_text())
    for key, value in settings.items():
        if value is None:
            del tree[section][key]
        else:
            tree[section][key] = value
    run.config_path.write_text(yaml.safe_dump(tree))


def test_a_folder_of_the_same_version_goes_on_without_a_word(made: tuple[Config, RunFolder]) -> None:
    config, run = made
    change(run, "learner", workers=2)  # free to change
    assert compare_with_run(config, run, FREE) is None


def test_another_version_is_named_with_what_differs(made: tuple[Config, RunFolder]) -> None:
    config, run = made
    run.version_path.write_text(json.dumps({"hatch_ray": "0.0.9", "format": 1}))
    line = compare_with_run(config, run, FREE)
    assert line == f"{run.path} was made by hatch-ray 0.0.9, this is hatch-ray {__version__}; the run goes on with it"
    change(run, "grpo", micro_batch=8, token_budget=None)
    change(run, "data", shuffle=True)
    line = compare_with_run(config, run, FREE)
    assert line is not None and "\n" not in line
    assert "grpo.micro_batch is now grpo.token_budget=8192" in line
    assert "data.shuffle=True is no longer a setting" in line
    assert "grpo.token_budget is new and 8192" in line
    run.version_path.unlink()
    assert "a hatch-ray that did not note its version" in (compare_with_run(config, run, FREE) or "")


def test_only_what_cannot_be_resumed_is_refused(made: tuple[Config, RunFolder]) -> None:
    config, run = made
    run.version_path.write_text(json.dumps({"hatch_ray": "0.0.9", "format": 1}))
    change(run, "grpo", beta=0.5)
    with pytest.raises(ConfigError, match=r"grpo\.beta: 0\.5 then, 0\.01 now\) and by hatch-ray 0\.0\.9"):
        compare_with_run(config, run, FREE)
    run.version_path.write_text(json.dumps({"hatch_ray": "9.0", "format": 99}))
    with pytest.raises(ConfigError, match=r"made by hatch-ray 9\.0.* format 99 .* use that version"):
        compare_with_run(config, run, FREE)
    run.version_path.write_text("{")
    with pytest.raises(ConfigError, match=r"version\.json is not readable"):
        compare_with_run(config, run, FREE)


@pytest.mark.parametrize("text", ["- 1", "a: [", "\xff"])
def test_a_saved_config_that_is_not_readable(made: tuple[Config, RunFolder], text: str) -> None:
    config, run = made
    run.config_path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        compare_with_run(config, run, FREE)
