"""Checkpoints: damage is recognised and told, the last good one is used, writing does not stop the training."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.runtime.checkpoints import MANIFEST, Checkpoints, CheckpointWriter, problem
from hatch_ray import __version__
from hatch_ray.config_sections import CheckpointsConfig, LearnerConfig
from hatch_ray.learning.workers import Workers

WEIGHTS = "model/model.safetensors"


def fill(folder: Path, text: str = "good") -> None:
    """A state of two files, one of them in a folder."""
    (folder / "model").mkdir()
    (folder / WEIGHTS).write_bytes(text.encode() * 1000)
    (folder / "state.json").write_text(json.dumps({"text": text}))


def written(folder: Path, *steps: int, keep: CheckpointsConfig | None = None) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.write(step, lambda path: fill(path, "good"))
    return checkpoints


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / WEIGHTS).read_bytes())
    data[1234] ^= 1
    (path / WEIGHTS).write_bytes(data)


def cut(path: Path) -> None:
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:-7])


def lose_a_file(path: Path) -> None:
    (path / "state.json").unlink()


def add_a_file(path: Path) -> None:
    (path / "optimizer.pt").write_bytes(b"planted")


def lose_the_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def cut_the_manifest(path: Path) -> None:
    (path / MANIFEST).write_text((path / MANIFEST).read_text()[:-20])


DAMAGES = [
    (flip_a_bit, r"model/model\.safetensors does not hold what was written"),
    (cut, r"model/model\.safetensors has 3993 bytes where 4000 were written"),
    (lose_a_file, r"state\.json is missing"),
    (add_a_file, r"optimizer\.pt is not in its manifest"),
    (lose_the_manifest, r"it has no manifest\.json, so it is half-written, or was made by a hatch-ray older"),
    (cut_the_manifest, r"its manifest\.json is damaged"),
]


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What a process remembers of verified states is its own; calling this forgets it, as a restart does."""
    import hatch_ray.manifest

    def forget() -> None:
        monkeypatch.setattr(hatch_ray.manifest, "_good", set())

    forget()
    return forget


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_state_is_named_and_the_one_before_is_used(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    another_process: Callable[[], None],
    damage: Callable[[Path], None],
    words: str,
) -> None:
    checkpoints = written(tmp_path / "c", 5, 10)
    damage(tmp_path / "c" / "step-000010")
    another_process()
    assert checkpoints.latest() == tmp_path / "c" / "step-000005"
    assert names(checkpoints) == ["bad-step-000010", "step-000005"]
    (record,) = caplog.records
    assert "\n" not in record.message
    assert re.search(words, record.message), record.message
    assert "it is now called bad-step-000010, and the stage goes on from step-000005" in record.message
    caplog.clear()
    assert checkpoints.latest() == tmp_path / "c" / "step-000005"
    assert not caplog.records


def test_with_no_good_state_left_the_stage_starts_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, another_process: Callable[[], None]
) -> None:
    checkpoints = written(tmp_path / "c", 5, 10)
    flip_a_bit(tmp_path / "c" / "step-000005")
    lose_the_manifest(tmp_path / "c" / "step-000010")
    another_process()
    assert checkpoints.latest() is None
    assert len(caplog.records) == 2
    assert all("no other is left, so the stage starts again" in record.message for record in caplog.records)
    written(tmp_path / "c", 10)  # the stage comes to this step again, and once more it goes bad
    flip_a_bit(tmp_path / "c" / "step-000010")
    another_process()
    assert checkpoints.latest() is None
    assert names(checkpoints) == ["bad-step-000005", "bad-step-000010", "bad-step-000010-2"]


@settings(max_examples=30)
@given(position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_any_flipped_bit_of_any_file_is_seen(tmp_path_factory: pytest.TempPathFactory, position: int, bit: int) -> None:
    folder = tmp_path_factory.mktemp("flip")
    checkpoints = Checkpoints(folder / "c")
    checkpoints.write(1, lambda path: (path / "a").write_bytes(b"0123456789") and (path / "b").write_bytes(b"abc"))
    data = bytearray(b"0123456789abc")
    data[position % len(data)] ^= 1 << bit
    (folder / "c" / "step-000001" / "a").write_bytes(data[:10])
    (folder / "c" / "step-000001" / "b").write_bytes(data[10:])
    (folder / "c").rename(folder / "d")  # verified under its first name alone
    name = "a" if position % len(data) < 10 else "b"
    assert problem(folder / "d" / "step-000001") == f"{name} does not hold what was written (its checksum differs)"


def test_states_are_read_once_in_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another_process: Callable[[], None]
) -> None:
    import hatch_ray.manifest

    hashed: list[Path] = []
    original = hatch_ray.manifest._hash
    monkeypatch.setattr(hatch_ray.manifest, "_hash", lambda path: hashed.append(path) or original(path))
    checkpoints = written(tmp_path, 5)
    assert len(hashed) == 2
    checkpoints.latest()
    assert len(hashed) == 2, "this process has just written it"
    another_process()
    checkpoints.latest()
    Checkpoints(tmp_path).latest()
    assert len(hashed) == 4
    written(tmp_path, 5)  # another state of the same step
    checkpoints.latest()
    assert len(hashed) == 6


def test_the_manifest_says_what_was_written_by_what(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.write(7, fill, score=0.25)
    manifest = json.loads((tmp_path / "step-000007" / MANIFEST).read_text())
    assert (manifest["step"], manifest["hatch_ray"], manifest["score"]) == (7, __version__, 0.25)
    assert manifest["files"].keys() == {WEIGHTS, "state.json"}
    assert manifest["files"][WEIGHTS]["bytes"] == 4000


def test_a_state_that_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 5)
    (tmp_path / ".writing.99999" / "model").mkdir(parents=True)  # of a process that was killed

    def killed(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        checkpoints.write(10, killed)
    assert names(checkpoints) == ["step-000005"]


def test_the_newest_stay_and_the_best_when_asked(tmp_path: Path) -> None:
    for keep, expected in (
        (CheckpointsConfig(), [900_000, 1_000_000]),
        (CheckpointsConfig(keep_last=1), [1_000_000]),
        (CheckpointsConfig(keep_last=1, keep_best=True), [2, 1_000_000]),
    ):
        checkpoints = Checkpoints(tmp_path / str(keep), keep)
        for step, score in ((1, 0.2), (2, 0.9), (3, 0.9 - 1e-9), (900_000, 0.1), (1_000_000, 0.3)):
            checkpoints.write(step, fill, score)
        assert [checkpoints.step(path) for path in checkpoints.all()] == expected
        latest = checkpoints.latest()
        assert latest is not None and checkpoints.step(latest) == 1_000_000


# --- the thread that writes -------------------------------------------------------------------------------------------


def test_training_goes_on_while_a_state_is_written(tmp_path: Path) -> None:
    """`save` returns at once; the next one waits; at the end of the block all are there, in order."""
    go, seen = threading.Event(), []

    def take(step: int) -> Callable[[Path], None]:
        seen.append(f"copied {step}")

        def write(folder: Path) -> None:
            assert go.wait(20)
            seen.append(f"written {step}")
            fill(folder)

        return write

    with CheckpointWriter(Checkpoints(tmp_path)) as writer:
        writer.save(1, lambda: take(1))
        assert seen == ["copied 1"]
        assert not list(tmp_path.glob("step-*"))
        go.set()
        writer.save(2, lambda: take(2))
        assert seen[:3] == ["copied 1", "written 1", "copied 2"], "no more than one copy at a time"
    assert seen[3:] == ["written 2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002"]


def broken(folder: Path) -> None:
    raise PermissionError(13, "Permission denied")


def test_what_a_write_failed_with_is_raised_by_the_next_call(tmp_path: Path) -> None:
    writer = CheckpointWriter(Checkpoints(tmp_path))
    writer.save(1, lambda: broken)
    with pytest.raises(PermissionError):
        writer.save(2, lambda: fill)
    writer.save(3, lambda: broken)
    with pytest.raises(PermissionError):
        writer.close()
    assert not list(tmp_path.glob("*"))


def train_and_fail(folder: Path, write: Callable[[Path], None]) -> None:
    with CheckpointWriter(Checkpoints(folder)) as writer:
        writer.save(1, lambda: write)
        raise FloatingPointError("loss is nan")


def test_an_error_of_the_training_is_not_hidden_by_one_of_the_writing(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError) as caught:
        train_and_fail(tmp_path, broken)
    assert "Permission denied" in caught.value.__notes__[0]
    with pytest.raises(FloatingPointError):
        train_and_fail(tmp_path, fill)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"], "a state under way is finished"


def test_what_workers_write_together_becomes_one_state(tmp_path: Path) -> None:
    (tmp_path / "c" / ".writing.3").mkdir(parents=True)
    with CheckpointWriter(Checkpoints(tmp_path / "c")) as writer:
        writer.save_together(4, fill, Workers(LearnerConfig()), score=-1.5)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-000004"]
    assert problem(tmp_path / "c" / "step-000004") is None
