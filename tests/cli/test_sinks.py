"""Sinks of metrics: TensorBoard, W&B and trackio get a run's rows while it trains, and none of them can hurt it."""

from __future__ import annotations

import json
import logging
import os
import signal
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hatch_ray import sinks
from hatch_ray.config import Config, make_config, save_config
from hatch_ray.run_folder import RunFolder
from hatch_ray.sinks import check_sinks, mirrored


def prepared(folder: Path, **settings: Any) -> tuple[Config, RunFolder]:
    """A run's folder as the recipe leaves it before its first stage."""
    config = make_config({"run_dir": str(folder / "run"), "stages": ["cold_start", "grpo"], **settings})
    run = RunFolder(folder / "run")
    save_config(config, run.config_path)
    return config, run


def take_steps(run: RunFolder, stage: str, steps: range) -> None:
    for step in steps:
        run.log(stage, step, {"loss": step / 4, "grad_norm": float("nan")}, ["a warning"] if step == 2 else [])


def scalars(run: RunFolder, stage: str) -> list[tuple[int, float]]:
    """What TensorBoard shows of a stage's loss now."""
    shown = EventAccumulator(str(run.path / "tensorboard" / stage)).Reload()
    return [(event.step, event.value) for event in shown.Scalars("loss")] if "loss" in shown.Tags()["scalars"] else []


def soon(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.2)


def test_tensorboard_follows_a_stage_and_has_what_the_metrics_have(tmp_path: Path) -> None:
    config, run = prepared(tmp_path)
    with mirrored(config, run):
        take_steps(run, "cold_start", range(1, 3))
        soon(lambda: (run.path / "tensorboard" / "cold_start").exists() and len(scalars(run, "cold_start")) == 2)
        run.forget_after("cold_start", 1)  # a restarted stage takes the second step again
        take_steps(run, "cold_start", range(2, 5))
        take_steps(run, "grpo", range(1, 3))
    assert scalars(run, "cold_start") == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert scalars(run, "grpo") == [(1, 0.25), (2, 0.5)]


def test_a_sink_that_fails_or_hangs_is_told_once_by_name_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sinks, "END_SECONDS", 1.0)
    caplog.set_level(logging.WARNING, "hatch_ray")
    config, run = prepared(tmp_path)
    (run.path / "tensorboard").write_text("in the way of the folder", encoding="utf-8")
    with mirrored(config, run):
        take_steps(run, "grpo", range(1, 3))
        soon(lambda: bool(caplog.records))
        take_steps(run, "grpo", range(3, 5))
    (said,) = caplog.messages
    assert said.startswith("tensorboard gets no more metrics (NotADirectoryError") and "Training goes on" in said
    (run.path / "tensorboard").unlink()
    with mirrored(config, run):
        process = next(one for one in children() if one[1] == str(run.path))[0]
        os.kill(process, signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert len(caplog.messages) == 2 and "ended by SIGKILL; a run waits 1 s" in caplog.messages[1]


def children() -> Iterator[tuple[int, str]]:
    """The sinks that run on this machine: process and run folder."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text(encoding="utf-8").split("\0")
        except OSError:  # it has ended
            continue
        if "hatch_ray.sinks" in words:
            yield int(path.parent.name), words[-2]


def test_a_package_that_is_absent_is_one_line_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "installed", lambda name: None)
    for name in ("wandb", "trackio"):
        with pytest.raises(ValueError, match=rf"{name}=mine needs .* pip install 'hatch-ray\[{name}\]'"):
            check_sinks(make_config({name: "mine"}))
    check_sinks(make_config({}))
    with pytest.raises(ValueError, match=r"wandb: String should match pattern.*a/b"):
        make_config({"wandb": "a/b"})


# --- with the packages ------------------------------------------------------------------------------------------


def stopped_and_resumed(config: Config, run: RunFolder) -> None:
    """Two steps; the driver goes; the second step is taken again, and more."""
    with mirrored(config, run):
        take_steps(run, "cold_start", range(1, 3))
    run.forget_after("cold_start", 1)
    with mirrored(config, run):
        take_steps(run, "cold_start", range(2, 4))
        take_steps(run, "grpo", range(1, 3))


WANTED = [("cold_start", 1), ("cold_start", 2), ("cold_start", 3), ("grpo", 1), ("grpo", 2)]


@pytest.mark.rest
def test_wandb_offline_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb", reason="needs the extra: pip install 'hatch-ray[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config, run = prepared(tmp_path, wandb="rooms", tensorboard=False)
    stopped_and_resumed(config, run)
    assert not caplog.messages
    files = sorted(run.path.glob("wandb/offline-run-*/*.wandb"))
    found = [list(records(file)) for file in files]
    ids = {(one.run.project, one.run.run_id, one.run.display_name) for file in found for one in file if one.run.run_id}
    assert len(files) == 2 and len(ids) == 1 and next(iter(ids))[::2] == ("rooms", "run")
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.history.item}
        for file in found
        for one in file
        if one.history.item
    ]
    assert [row["_step"] for row in rows] == [0, 1, 2, 3, 4]
    sent = [(stage, row[f"{stage}/step"], row[f"{stage}/loss"]) for row in rows for stage in config.stages
            if f"{stage}/step" in row]  # fmt: skip
    assert sent == [(stage, step, step / 4) for stage, step in WANTED]


def records(file: Path) -> Iterator[Any]:
    """A .wandb file's records: a LevelDB log of protocol buffers after 7 bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (room := 2**15 - place % 2**15) < 7:
            place += room
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            yield Record.FromString(parts)
            parts = b""


@pytest.mark.rest
def test_trackio_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("trackio", reason="needs the extra: pip install 'hatch-ray[trackio]'")
    import sqlite3

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    config, run = prepared(tmp_path, trackio="rooms", tensorboard=False)
    stopped_and_resumed(config, run)
    assert not caplog.messages
    with sqlite3.connect(tmp_path / "trackio" / "rooms.db") as kept:
        rows = [
            (step, json.loads(values)) for step, values in kept.execute("select step, metrics from metrics order by id")
        ]
        (name,) = {name for (name,) in kept.execute("select distinct run_name from metrics")}
    assert name == f"run-{json.loads((run.path / 'sinks' / 'trackio.json').read_text())['id']}"
    sent = [(key.split("/")[0], step, values[key]) for step, values in rows for key in values if key.endswith("/loss")]
    assert sent == [(stage, step, step / 4) for stage, step in WANTED]
