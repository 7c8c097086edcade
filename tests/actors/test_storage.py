"""Runs whose home is a bucket: a real S3 server, pyarrow, and what is there after a push that was killed anywhere."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSelector, FileSystem
from rich.console import Console

from actors.runtime import bucket_sync
from actors.runtime.bucket_sync import pushed
from actors.runtime.checkpoints import Checkpoints, problem
from hatch_ray.config import make_config, save_config
from hatch_ray.config_sections import CheckpointsConfig
from hatch_ray.control import whoami
from hatch_ray.run_folder import RunFolder, append_jsonl
from hatch_ray.storage import (
    BLOCK,
    MARK,
    Home,
    StorageError,
    TakenOverError,
    driven_folder,
    local_run,
)
from tests.support.runs import (
    ALONE,
    ROOMS,
    SHORT,
    hatch_here,
    kill,
    metrics,
    reserve_ports,
    rows_of,
    start,
    wait_for_step,
)

SECRET = "wJalrXUtnFEMI-never-to-be-written"
STEPS = 4


class Server:
    """moto's S3 over HTTP. What it holds outlives `stop`, as a bucket does a broken network."""

    def __init__(self) -> None:
        (self.port,) = reserve_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        server = Server()
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        files, _ = FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
        files.create_dir("bucket")
        yield server
        server.stop()


@pytest.fixture
def address(server: Server, request: pytest.FixtureRequest) -> str:
    """A home of this test's own; HATCH_TEST_STORE=gs: in the bucket of CLOUD_STORAGE_EMULATOR_ENDPOINT."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"{os.environ.get('HATCH_TEST_STORE', 's3')}://bucket/{name}/run"


def make_run(folder: Path, address: str) -> RunFolder:
    """A run as training writes it: cold start done, GRPO with one state."""
    run = RunFolder(folder)
    save_config(make_config({"run_dir": address}), run.config_path)
    (run.data("train") / "images").mkdir(parents=True)
    (run.data("train") / "index.jsonl").write_text('{"id": 1}\n')
    (run.data("train") / "images" / "0.png").write_bytes(b"\x89PNG")
    write_status(run, 1)
    finish_stage(run, "cold_start")
    train(run, "grpo", 1, STEPS)
    return run


def train(run: RunFolder, stage: str, first: int, last: int, keep: int = 1) -> None:
    """Steps with their rows, and a state after the last."""
    for step in range(first, last + 1):
        run.log(stage, step, {"loss": 1 / step})
        append_jsonl(run.ledger, [{"step": step - 1, "place": step - 1, "id": "a", "version": 0, "status": "trained"}])

    def fill(state: Path) -> None:
        (state / "model").mkdir()
        (state / "model" / "model.safetensors").write_bytes(f"weights {stage} {last}".encode())
        (state / "state.pt").write_bytes(b"optimizer" * last)

    Checkpoints(run.checkpoints(stage), CheckpointsConfig(keep_last=keep)).write(last, fill)


def finish_stage(run: RunFolder, stage: str) -> None:
    run.stage_model(stage).mkdir(parents=True)
    (run.stage_model(stage) / "model.safetensors").write_bytes(f"model of {stage}".encode())
    run.set_progress(stage, step=STEPS, done=True)
    run.link_model(stage)


def write_status(run: RunFolder, beat: int, state: str = "ended", host: str = "", **more: object) -> None:
    who = whoami() | ({"host": host} if host else {}) | more
    status = {"state": state, "beat": beat, "time": time.time(), "stage": None, "step": 0, "steps": 0} | who
    run.status_path.write_text(json.dumps(status))


def files(folder: Path) -> dict[str, bytes]:
    """Everything that belongs into the bucket."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: (folder / name).read_bytes() for name in names if name != MARK and not name.startswith("model/")}


def names(home: Home) -> set[str]:
    """Everything in the bucket but who pushes."""
    found = home.bucket.get_file_info(FileSelector("", recursive=True, allow_not_found=True))
    return {info.path for info in found if info.is_file} - {MARK}


def pulled(address: str, root: Path) -> RunFolder:
    """The run on a new machine."""
    return RunFolder(Home(address, root).pull("everything"))


def taken(address: str, root: Path, every: float = 30) -> Home:
    """A machine that goes on with the run."""
    home = Home(address, root, every=every)
    home.pull_to_train()
    home.take()
    return home


def test_a_run_comes_back_whole_on_another_machine(address, tmp_path):
    home = Home(address, tmp_path / "a")
    run = make_run(home.folder, address)
    for name in (".stop", "control/1.json", "grpo/checkpoints/.writing.7/x", "cold_start/trainer/y", ".ray_train/z",
                 "grpo/checkpoints/bad-step-000001/x", "stacks/driver"):  # fmt: skip
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("stays here")
    (run.stage_model("cold_start") / "more.safetensors").write_bytes(os.urandom(BLOCK + 2**20))  # in several parts
    home.push()
    there = pulled(address, tmp_path / "b")
    assert there.path == tmp_path / "b" / "bucket" / address.rpartition("bucket/")[2]
    assert files(there.path) == {name: data for name, data in files(run.path).items() if data != b"stays here"}
    assert there.model.is_symlink() and os.readlink(there.model) == "cold_start/model"
    state = Checkpoints(there.checkpoints("grpo")).latest()
    assert state is not None and state.name == "step-000004" and problem(state) is None
    Dying(address, tmp_path / "a", 0).push()  # nothing has changed
    for name, data in files(there.path).items():
        assert SECRET.encode() not in data and b"AKIA" not in data, name
    assert SECRET not in (run.path / MARK).read_text() + (home.read(MARK) or b"").decode()


class Killed(BaseException):
    """The process is gone."""


class Dying(Home):
    """Makes so many changes in the bucket, then the process is killed. noting: it still saves what it had pushed."""

    def __init__(self, address: str, root: Path, lives: int, noting: bool = False) -> None:
        super().__init__(address, root)
        self.lives, self.made, self.noting, self.dead = lives, 0, noting, False
        self._lock = threading.Lock()

    def _spend(self) -> None:
        with self._lock:
            self.dead = self.made == self.lives
            if self.dead:
                raise Killed
            self.made += 1

    def _save(self):
        if self.noting or not self.dead:
            super()._save()

    def write(self, name, content):
        self._spend()
        super().write(name, content)

    def put(self, name):
        self._spend()
        return super().put(name)

    def delete(self, name):
        self._spend()
        super().delete(name)


def go_on(run: RunFolder) -> None:
    """GRPO trains on, twice past a state (the first is dropped), and ends."""
    train(run, "grpo", STEPS + 1, STEPS + 2)
    train(run, "grpo", STEPS + 3, STEPS + 4)
    finish_stage(run, "grpo")
    write_status(run, 2)


@pytest.mark.parametrize("noting", [True, False], ids=["noted", "not noted"])
def test_whatever_change_of_the_bucket_is_the_last_it_holds_a_run_that_goes_on(noting, address, tmp_path):
    """A first push and a later one, killed after every change in turn; what is left over goes in the end."""
    run = make_run(Home(address, tmp_path / "a").folder, address)
    moments = 0
    for later in (False, True):
        if later:
            go_on(run)
        for lives in count(1):
            home = Dying(address, tmp_path / "a", 1 if noting else lives, noting)
            home.pull_to_train()
            try:
                home.push()
            except Killed:
                moments += 1
                check_goes_on(address, tmp_path / "b", later)
            else:
                break
    assert moments > 18
    assert names(home) == files(run.path).keys()
    assert files(pulled(address, tmp_path / "c").path) == files(run.path)


@pytest.mark.parametrize("lives", [3, 5, 7])
def test_what_a_push_left_that_was_killed_before_it_noted_anything_goes(lives, address, tmp_path):
    home = Home(address, tmp_path / "a")
    run = make_run(home.folder, address)
    home.push()
    train(run, "grpo", STEPS + 1, STEPS + 2)
    with pytest.raises(Killed):
        Dying(address, tmp_path / "a", lives).push()
    train(run, "grpo", STEPS + 3, STEPS + 4)  # which drops what the bucket may hold a part of
    again = taken(address, tmp_path / "a")
    again.push()
    assert names(again) == files(run.path).keys()


def test_no_checkpoint_is_there_without_its_rows_though_it_is_finished_while_files_are_listed(address, tmp_path):
    """The folder is listed file by file: the rows as they are, then a checkpoint of later steps."""
    run = make_run(Home(address, tmp_path / "a").folder, address)
    taken(address, tmp_path / "a").push()
    steps = count(STEPS + 1)

    class Training(Dying):
        def _list(self, files):
            before = super()._list(files)
            if files is self.local:
                step = next(steps)
                train(run, "grpo", step, step, keep=9)
            return super()._list(files) | {name: stat for name, stat in before.items() if name.endswith(".jsonl")}

    for lives in (1, 2, 3, 4, 5, 6, 8, 10, 99):
        with suppress(Killed):
            Training(address, tmp_path / "a", lives, noting=True).push()
        check_goes_on(address, tmp_path / "b", later=True)
    states = {int(name.split("/")[2][5:]) for name in names(Home(address, tmp_path / "a")) if "/checkpoints/" in name}
    assert max(states) > STEPS + 9


def test_a_checkpoint_that_the_run_went_back_behind_is_withdrawn_before_its_rows_are(address, tmp_path):
    """The newest one here was damaged: the stage goes on from the one before, and drops the rows beyond it."""
    run = make_run(Home(address, tmp_path / "a").folder, address)
    train(run, "grpo", STEPS + 1, STEPS + 2, keep=2)
    taken(address, tmp_path / "a").push()
    state = run.checkpoints("grpo") / "step-000006"
    state.rename(state.with_name("bad-step-000006"))
    run.forget_after("grpo", STEPS)
    run.ledger.write_text("".join(f"{json.dumps(row)}\n" for row in rows_of(run.ledger)[:STEPS]))
    for moment in count():
        home = Dying(address, tmp_path / "a", 1, noting=True)
        with suppress(Killed):
            home.push()
        check_goes_on(address, tmp_path / f"b{moment}", later=True)
        if not home.dead:
            break
    assert moment >= 4
    assert names(home) == {name for name in files(run.path) if "bad-step" not in name}


def check_goes_on(place: str, root: Path, later: bool) -> None:
    there = pulled(place, root)
    if not there.config_path.exists():
        assert not later, "what was there is there"
        return
    states = Checkpoints(there.checkpoints("grpo")).all()
    whole = [state for state in states if (state / "manifest.json").exists()]
    assert [problem(state) for state in whole] == [None] * len(whole)
    latest = Checkpoints(there.checkpoints("grpo")).latest()
    assert latest is not None or not later
    if latest is not None:
        rows = [row["step"] for row in metrics(there.path, "grpo")]
        assert rows[: Checkpoints.step(latest)] == list(range(1, Checkpoints.step(latest) + 1))
        assert len(rows_of(there.ledger)) >= Checkpoints.step(latest)
    done = [stage for stage, state in there.progress().items() if state["done"]]
    for stage in done:
        assert (there.stage_model(stage) / "model.safetensors").read_bytes() == f"model of {stage}".encode()
    assert not done or (there.model / "model.safetensors").read_bytes() == f"model of {done[-1]}".encode()
    assert done or not later


def test_a_state_that_vanishes_while_it_is_pushed_is_no_error_and_takes_no_older_one_with_it(
    address, tmp_path, monkeypatch
):
    monkeypatch.setattr("hatch_ray.storage.THREADS", 1)
    home = Home(address, tmp_path / "a")
    run = make_run(home.folder, address)
    home.push()
    train(run, "grpo", STEPS + 1, STEPS + 2)

    class Slow(Home):
        def put(self, name):
            there = super().put(name)
            if name.startswith("grpo/checkpoints/"):
                shutil.rmtree(run.checkpoints("grpo") / "step-000006", ignore_errors=True)
            return there

    Slow(address, tmp_path / "a").push()
    there = pulled(address, tmp_path / "b")
    states = {state.name: problem(state) for state in Checkpoints(there.checkpoints("grpo")).all()}
    assert states.pop("step-000004") is None
    assert all("half-written" in (why or "") for why in states.values())
    home = Home(address, tmp_path / "a")
    train(run, "grpo", STEPS + 3, STEPS + 4)
    home.push()
    assert {name.split("/")[2] for name in names(home) if "/checkpoints/" in name} == {"step-000008"}


def test_a_file_that_grows_while_it_is_pushed_is_pushed_again(address, tmp_path):
    home = Home(address, tmp_path / "a")
    run = make_run(home.folder, address)

    class Slow(Home):
        def put(self, name):
            there = super().put(name)
            if name == "metrics.jsonl":
                run.log("grpo", 99, {"loss": 1.0})
            return there

    Slow(address, tmp_path / "a").push()
    home = Dying(address, tmp_path / "a", 1)  # that file alone
    home.push()
    assert home.read("metrics.jsonl") == run.metrics_path.read_bytes()


@pytest.mark.rest
def test_the_network_goes_and_comes_and_training_goes_on(server, address, tmp_path, caplog, monkeypatch):
    home = Home(address, tmp_path / "a")
    run = make_run(home.folder, address)
    said: list[str] = []
    console = Console(file=(tmp_path / "said").open("w"))
    home.every = 0.1
    with pushed(home, console):
        wait_until(lambda: home.read("metrics.jsonl") is not None)
        server.stop()
        try:
            run.log("grpo", 50, {"loss": 0.5})
            wait_until(lambda: "not pushed" in caplog.text)
        finally:
            server.start()
        wait_until(lambda: "pushed again" in caplog.text)
        said = [record.getMessage() for record in caplog.records if "not pushed" in record.getMessage()]
    assert len(said) == 1 and "training goes on" in said[0] and address in said[0] and "Traceback" not in said[0]
    assert home.read("metrics.jsonl") == run.metrics_path.read_bytes()

    monkeypatch.setattr(bucket_sync, "LAST_TRIES", 1)
    home.every = 60
    pushing = pushed(home, console)
    pushing.__enter__()
    run.log("grpo", 51, {"loss": 0.5})
    server.stop()
    with pytest.raises(StorageError, match=rf"whole in {home.folder}; the same command"):
        pushing.__exit__(None, None, None)
    server.start()
    assert home.read("metrics.jsonl") != run.metrics_path.read_bytes()
    with pushed(Home(address, tmp_path / "a", every=60), console):
        pass
    assert home.read("metrics.jsonl") == run.metrics_path.read_bytes()


def wait_until(what, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("end", [FloatingPointError("loss is nan"), SystemExit(143), KeyboardInterrupt()], ids=repr)
def test_a_run_that_fails_or_is_stopped_is_pushed_and_ends_as_it_would(end, address, tmp_path):
    home = Home(address, tmp_path / "a", every=60)

    def run_to_its_end() -> None:
        with pushed(home, Console(file=(tmp_path / "said").open("w"))):
            make_run(home.folder, address)
            raise end

    with pytest.raises(type(end)) as raised:
        run_to_its_end()
    assert raised.value is end
    assert files(pulled(address, tmp_path / "b").path) == files(home.folder)


def test_a_first_start_that_fails_before_training_leaves_no_run_behind(address, tmp_path):
    home = Home(address, tmp_path / "a", every=0.1)
    with pushed(home, Console()):
        save_config(make_config({}), home.folder / "config.yaml")
        time.sleep(0.5)
    assert names(home) == set()


def test_machines_take_turns_and_neither_loses_work(address, tmp_path):
    first = Home(address, tmp_path / "a")
    one = make_run(first.folder, address)
    first.push()
    second = taken(address, tmp_path / "b")
    two = RunFolder(second.folder)
    train(two, "grpo", STEPS + 1, STEPS + 2)
    second.push()
    with pytest.raises(TakenOverError, match=r"now pushed to by .*nothing more is pushed"):
        first.push()
    again = taken(address, tmp_path / "a")  # it had nothing of its own since
    assert [row["step"] for row in metrics(one.path, "grpo")] == list(range(1, STEPS + 3))
    assert (one.checkpoints("grpo") / "step-000006").is_dir()
    again.push()
    two.log("grpo", 7, {"loss": 1.0})  # both go on
    one.log("grpo", 7, {"loss": 2.0})
    again.push()
    before = files(two.path)
    with pytest.raises(
        StorageError, match=r"has work that is not there \(metrics.jsonl\). To continue from the bucket move"
    ):
        taken(address, tmp_path / "b")
    assert files(two.path) == before
    assert again.read("metrics.jsonl") == one.metrics_path.read_bytes()


def test_a_run_that_another_machine_took_over_trains_to_its_end_and_then_says_so(address, tmp_path, caplog):
    home = Home(address, tmp_path / "a", every=0.1)
    run = make_run(home.folder, address)
    pushing = pushed(home, Console(file=(tmp_path / "said").open("w")))
    pushing.__enter__()
    wait_until(lambda: home.read("status.json") is not None)
    taken(address, tmp_path / "b")
    run.log("grpo", 9, {"loss": 1.0})
    wait_until(lambda: "nothing more is pushed" in caplog.text)
    with pytest.raises(TakenOverError, match="which keeps this run's work"):
        pushing.__exit__(None, None, None)
    assert caplog.text.count("nothing more is pushed") == 1


def test_a_pull_that_was_killed_goes_on(address, tmp_path):
    home = Home(address, tmp_path / "a")
    run = make_run(home.folder, address)
    home.push()

    class Dead(Home):
        def get(self, name, time_ns):
            super().get(name, time_ns)
            if name == "metrics.jsonl":
                raise Killed

    with pytest.raises(Killed):
        Dead(address, tmp_path / "b").pull("everything")
    assert files(pulled(address, tmp_path / "b").path).keys() >= files(run.path).keys()


def test_a_run_that_is_live_elsewhere_is_refused(address, tmp_path, monkeypatch):
    monkeypatch.setattr("hatch_ray.storage.LOOK_SECONDS", 0.1)
    home = Home(address, tmp_path / "a", every=0.1)
    run = make_run(home.folder, address)
    write_status(run, 5, "running")
    home.push()
    beat = threading.Timer(1.0, lambda: (write_status(run, 6, "running"), home.push()))
    beat.start()
    with pytest.raises(StorageError, match=rf"is being trained on {socket.gethostname()} \({run.path}\); stop"):
        taken(address, tmp_path / "b")
    beat.join()
    began = time.monotonic()
    other = Home(address, tmp_path / "b")
    other.pull_to_train()  # silent for 3 x 0.1 s + 5 s
    assert time.monotonic() - began > 5
    write_status(run, 7, "running")
    home.push()  # it lives after all
    with pytest.raises(TakenOverError, match="now pushed to by"):
        other.take()


def test_readers_pull_what_they_need_and_use_the_folder_of_a_run_that_is_here(address, tmp_path):
    home = Home(address, tmp_path / "a")
    run = make_run(home.folder, address)
    home.push()
    assert local_run(address, "status", tmp_path / "b") == run.path, "this machine has it"
    shutil.move(run.path, tmp_path / "away")
    there = local_run(address, "status", tmp_path / "b")
    assert files(there).keys() == {"config.yaml", "progress.json", "status.json"}
    assert local_run(address, "report", tmp_path / "b") == there
    assert files(there).keys() == {"config.yaml", "progress.json", "status.json", "metrics.jsonl", "ledger.jsonl"}
    with pytest.raises(StorageError, match=r"not worked on here; .* hatch scale [gs3]+://"):
        driven_folder(address, "scale")
    (there / "report.html").write_text("<p>")
    Home(address, folder=there).put_back("report.html")
    shutil.move(tmp_path / "away", run.path)
    run.log("grpo", 9, {"loss": 1.0})
    home.push()
    assert driven_folder(address, "scale") == run.path
    shutil.move(run.path, tmp_path / "away")
    assert local_run(address, "report", tmp_path / "b") == there
    assert len(metrics(there, "grpo")) == STEPS + 1, "pulled again, and the report in between took nothing over"
    shutil.move(tmp_path / "away", run.path)
    home.push()
    assert home.read("report.html") == b"<p>"


def test_a_home_that_was_emptied_gets_everything_again(address, tmp_path):
    home = Home(address, tmp_path / "a")
    run = make_run(home.folder, address)
    home.push()
    for name in names(home) | {MARK}:
        home.bucket.delete_file(name)
    home.push()
    assert files(pulled(address, tmp_path / "b").path) == files(run.path)


def test_a_bucket_that_is_not_there_or_not_allowed_is_one_line_before_anything_is_trained(server, tmp_path):
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/run: .*NO_SUCH_BUCKET") as refusal:
        taken("s3://no-such-bucket/run", tmp_path)
    assert SECRET not in str(refusal.value)


TRAINED = 240
"""Steps of the run in the bucket: so many that it can be killed at work."""


@pytest.mark.rest
def test_a_killed_run_goes_on_from_the_bucket_on_a_new_machine_and_is_read_from_there(
    ray_cluster, address, tmp_path, tiny_model, monkeypatch
):
    """Real training: what the new machine trains is what the first one had trained beyond the state in the bucket."""
    words = [
        "train", "configs/tiny.yaml", f"run_dir={address}", f"model.base={tiny_model}", *SHORT, *ROOMS, *ALONE,
        "stages=[cold_start]", f"cold_start.max_steps={TRAINED}", "cold_start.save_every=10", "tensorboard=false",
        "storage.mirror_seconds=0.3",
    ]  # fmt: skip
    process = start([*words, f"storage.work_dir={tmp_path / 'a'}"])
    first = Home(address, tmp_path / "a")
    try:
        wait_until(lambda: process.poll() is not None or "checkpoint" in str(states_of(first)), 180)
        wait_for_step(process, first.folder, "cold_start", max(states_of(first).values()) + 3, 60)
    finally:
        kill(process)
    assert process.stdout is not None
    assert f"run folder: {first.folder}, pushed to {address}" in process.stdout.read()
    reached = max(states_of(first).values())
    before = metrics(first.folder, "cold_start")
    assert 10 <= reached < before[-1]["step"] < TRAINED, "it was killed between a state in the bucket and the end"

    left = Home(address, tmp_path / "b").folder / "cold_start" / ".model.4711"
    left.mkdir(parents=True)  # as by a process that was killed there before
    output = hatch_here(*words, f"storage.work_dir={tmp_path / 'b'}")
    assert f"pushed: {address}" in output
    assert not left.exists()
    second = RunFolder(Home(address, tmp_path / "b").folder)
    rows = metrics(second.path, "cold_start")
    assert [row["step"] for row in rows] == list(range(1, TRAINED + 1))
    assert [row["loss"] for row in rows[: len(before)]] == [row["loss"] for row in before]
    assert rows[reached]["time"] > before[-1]["time"], "these steps were taken on the new machine"
    assert SECRET not in output

    shutil.move(second.path, tmp_path / "away")
    there = tmp_path / ".cache" / "hatch-ray" / "runs" / address.partition("://")[2]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "pushed: s3://" in hatch_here("report", address)
    assert "the run is not live: it ended" in hatch_here("status", address)
    assert first.read("report.html") == (there / "report.html").read_bytes()
    assert not (there / "cold_start").exists() and b"cold_start" in (there / "metrics.jsonl").read_bytes()
    for command in (["scale", address, "reward=2"], ["serve", address, "--follow"]):
        with pytest.raises(StorageError, match="not worked on here"):
            hatch_here(*command)


def states_of(home: Home) -> dict[str, int]:
    """The whole checkpoints in the bucket, with their steps."""
    found = (name for name in names(home) if "/checkpoints/" in name and name.endswith("/manifest.json"))
    return {name: int(name.split("/")[2].removeprefix("step-")) for name in found}
