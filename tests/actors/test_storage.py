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
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pyarrow.fs import FileSystem
from rich.console import Console

from actors import mirror
from actors.checkpoints import Checkpoints, problem
from actors.mirror import Mirror
from hatch_ray.bucket import BLOCK, Bucket, StorageError
from hatch_ray.config import make_config, save_config
from hatch_ray.config_sections import CheckpointsConfig
from hatch_ray.control import whoami
from hatch_ray.run_folder import RunFolder, append_jsonl
from hatch_ray.storage import (
    MARK,
    Home,
    TakenOverError,
    driven_folder,
    everything,
    for_report,
    for_status,
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


def train(run: RunFolder, stage: str, first: int, last: int) -> None:
    """Steps with their rows, and a state after the last."""
    for step in range(first, last + 1):
        run.log(stage, step, {"loss": 1 / step})
        append_jsonl(run.ledger, [{"step": step - 1, "place": step - 1, "id": "a", "version": 0, "status": "trained"}])

    def fill(state: Path) -> None:
        (state / "model").mkdir()
        (state / "model" / "model.safetensors").write_bytes(f"weights {stage} {last}".encode())
        (state / "state.pt").write_bytes(b"optimizer" * last)

    Checkpoints(run.checkpoints(stage), CheckpointsConfig(keep_last=1)).write(last, fill)


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


def pulled(address: str, root: Path) -> RunFolder:
    """The run on a new machine."""
    return RunFolder(Home.of(address, root).pull(everything))


def test_a_run_comes_back_whole_on_another_machine(address, tmp_path):
    home = Home.of(address, tmp_path / "a")
    run = make_run(home.folder, address)
    for name in (".stop", "control/1.json", "grpo/checkpoints/.writing.7/x", "cold_start/trainer/y", ".ray_train/z",
                 "grpo/checkpoints/bad-step-000001/x", "stacks/driver"):  # fmt: skip
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).write_text("stays here")
    (run.stage_model("cold_start") / "more.safetensors").write_bytes(os.urandom(BLOCK + 2**20))  # in several parts
    assert home.push() > 0
    there = pulled(address, tmp_path / "b")
    assert there.path == tmp_path / "b" / "bucket" / address.rpartition("bucket/")[2]
    assert files(there.path) == {name: data for name, data in files(run.path).items() if data != b"stays here"}
    assert there.model.is_symlink() and os.readlink(there.model) == "cold_start/model"
    state = Checkpoints(there.checkpoints("grpo")).latest()
    assert state is not None and state.name == "step-000004" and problem(state) is None
    assert home.push() == 0, "nothing changed"
    for name, data in files(there.path).items():
        assert SECRET.encode() not in data and b"AKIA" not in data, name
    assert SECRET not in (run.path / MARK).read_text() + (Bucket(address).read(MARK) or b"").decode()


class Killed(BaseException):
    """The process is gone."""


class Dying(Bucket):
    """Takes so many changes, then the process is killed."""

    def __init__(self, address: str, lives: int) -> None:
        super().__init__(address)
        self.lives, self.made = lives, 0
        self._lock = threading.Lock()

    def _spend(self) -> None:
        with self._lock:
            if self.made == self.lives:
                raise Killed
            self.made += 1

    def write(self, name, content):
        self._spend()
        super().write(name, content)

    def put(self, name, source):
        self._spend()
        super().put(name, source)

    def delete(self, name):
        self._spend()
        super().delete(name)


def go_on(run: RunFolder) -> None:
    """GRPO trains on, twice past a state (the first is dropped), and ends."""
    train(run, "grpo", STEPS + 1, STEPS + 2)
    train(run, "grpo", STEPS + 3, STEPS + 4)
    finish_stage(run, "grpo")
    write_status(run, 2)


def test_whatever_change_of_the_bucket_is_the_last_it_holds_a_run_that_goes_on(address, tmp_path):
    """A first push and a later one, killed after every change in turn; what is left over goes in the end."""
    run = make_run(Home.of(address, tmp_path / "a").folder, address)
    moments = 0
    for later in (False, True):
        if later:
            go_on(run)
        while True:
            home = Home.of(address, tmp_path / "a")
            home.bucket = Dying(address, 1)
            try:
                home.push()
            except Killed:
                moments += 1
                check_goes_on(address, tmp_path / "b", later)
            else:
                break
    assert moments > 18
    assert home.bucket.list().keys() - {MARK} == files(run.path).keys()
    assert files(pulled(address, tmp_path / "c").path) == files(run.path)


@pytest.mark.parametrize("lives", [3, 5, 7])
def test_what_a_push_left_that_was_killed_before_it_noted_anything_goes(lives, address, tmp_path):
    home = Home.of(address, tmp_path / "a")
    run = make_run(home.folder, address)
    home.push()
    train(run, "grpo", STEPS + 1, STEPS + 2)
    noted = (run.path / MARK).read_bytes()
    home.bucket = Dying(address, lives)
    with pytest.raises(Killed):
        home.push()
    (run.path / MARK).write_bytes(noted)
    train(run, "grpo", STEPS + 3, STEPS + 4)  # which drops what the bucket may hold a part of
    again = Home.of(address, tmp_path / "a")
    again.take(30)
    again.push()
    assert again.bucket.list().keys() - {MARK} == files(run.path).keys()


@pytest.mark.parametrize("lives", [0, 1, 2, 7])
def test_a_first_push_that_was_killed_before_it_noted_anything_is_gone_on_with(lives, address, tmp_path):
    home = Home.of(address, tmp_path / "a")
    home.take(30)
    run = make_run(home.folder, address)

    class DyingUnnoted(Dying):
        noted: bytes | None = None

        def _spend(self):
            if self.made == 0 and (run.path / MARK).exists():
                self.noted = (run.path / MARK).read_bytes()
            super()._spend()

    home.bucket = dying = DyingUnnoted(address, lives)
    with pytest.raises(Killed):
        home.push()
    (run.path / MARK).unlink()
    if dying.noted is not None:
        (run.path / MARK).write_bytes(dying.noted)
    again = Home.of(address, tmp_path / "a")
    again.take(30)
    again.push()
    assert files(pulled(address, tmp_path / "b").path) == files(run.path)


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
    monkeypatch.setattr("hatch_ray.bucket.THREADS", 1)
    home = Home.of(address, tmp_path / "a")
    run = make_run(home.folder, address)
    home.push()
    train(run, "grpo", STEPS + 1, STEPS + 2)

    class Slow(Bucket):
        def put(self, name, source):
            super().put(name, source)
            if name.startswith("grpo/checkpoints/"):
                shutil.rmtree(run.checkpoints("grpo") / "step-000006", ignore_errors=True)

    home.bucket = Slow(address)
    home.push()
    there = pulled(address, tmp_path / "b")
    states = {state.name: problem(state) for state in Checkpoints(there.checkpoints("grpo")).all()}
    assert states.pop("step-000004") is None
    assert all("half-written" in (why or "") for why in states.values())
    home.bucket = Bucket(address)
    train(run, "grpo", STEPS + 3, STEPS + 4)
    home.push()
    names = {name.split("/")[2] for name in home.bucket.list() if "/checkpoints/" in name}
    assert names == {"step-000008"}


def test_a_file_that_grows_while_it_is_pushed_is_pushed_again(address, tmp_path):
    home = Home.of(address, tmp_path / "a")
    run = make_run(home.folder, address)

    class Slow(Bucket):
        def put(self, name, source):
            super().put(name, source)
            if name == "metrics.jsonl":
                run.log("grpo", 99, {"loss": 1.0})

    home.bucket = Slow(address)
    home.push()
    home.bucket = Bucket(address)
    assert home.push() == 1
    assert home.bucket.read("metrics.jsonl") == run.metrics_path.read_bytes()


def test_the_network_goes_and_comes_and_training_goes_on(server, address, tmp_path, caplog, monkeypatch):
    home = Home.of(address, tmp_path / "a")
    run = make_run(home.folder, address)
    said: list[str] = []
    console = Console(file=(tmp_path / "said").open("w"))
    with Mirror(home, 0.1, console):
        wait_until(lambda: home.bucket.read("metrics.jsonl") is not None)
        server.stop()
        try:
            run.log("grpo", 50, {"loss": 0.5})
            wait_until(lambda: "not pushed" in caplog.text)
        finally:
            server.start()
        wait_until(lambda: "pushed again after" in caplog.text)
        said = [record.getMessage() for record in caplog.records if "not pushed" in record.getMessage()]
    assert len(said) == 1 and "training goes on" in said[0] and address in said[0] and "Traceback" not in said[0]
    assert home.bucket.read("metrics.jsonl") == run.metrics_path.read_bytes()

    monkeypatch.setattr(mirror, "LAST_TRIES", 1)
    pushing = Mirror(home, 60, console)
    pushing.__enter__()
    run.log("grpo", 51, {"loss": 0.5})
    server.stop()
    with pytest.raises(StorageError, match=rf"whole in {home.folder}; the same command"):
        pushing.__exit__(None, None, None)
    server.start()
    assert home.bucket.read("metrics.jsonl") != run.metrics_path.read_bytes()
    with Mirror(Home.of(address, tmp_path / "a"), 60, console):
        pass
    assert home.bucket.read("metrics.jsonl") == run.metrics_path.read_bytes()


def wait_until(what, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("end", [FloatingPointError("loss is nan"), SystemExit(143), KeyboardInterrupt()], ids=repr)
def test_a_run_that_fails_or_is_stopped_is_pushed_and_ends_as_it_would(end, address, tmp_path):
    home = Home.of(address, tmp_path / "a")

    def run_to_its_end() -> None:
        with Mirror(home, 60, Console(file=(tmp_path / "said").open("w"))):
            make_run(home.folder, address)
            raise end

    with pytest.raises(type(end)) as raised:
        run_to_its_end()
    assert raised.value is end
    assert files(pulled(address, tmp_path / "b").path) == files(home.folder)


def test_a_first_start_that_fails_before_training_leaves_no_run_behind(address, tmp_path):
    home = Home.of(address, tmp_path / "a")
    with Mirror(home, 60, Console()):
        save_config(make_config({}), home.folder / "config.yaml")
    assert set(home.bucket.list()) == {MARK}


def test_machines_take_turns_and_neither_loses_work(address, tmp_path):
    first, second = Home.of(address, tmp_path / "a"), Home.of(address, tmp_path / "b")
    one = make_run(first.folder, address)
    first.push()
    second.take(30)
    two = RunFolder(second.folder)
    train(two, "grpo", STEPS + 1, STEPS + 2)
    second.push()
    with pytest.raises(TakenOverError, match=r"now pushed to by .*nothing more is pushed"):
        first.push()
    again = Home.of(address, tmp_path / "a")
    again.take(30)  # it had nothing of its own since
    assert [row["step"] for row in metrics(one.path, "grpo")] == list(range(1, STEPS + 3))
    assert (one.checkpoints("grpo") / "step-000006").is_dir()
    again.push()
    two.log("grpo", 7, {"loss": 1.0})  # both go on
    one.log("grpo", 7, {"loss": 2.0})
    again.push()
    before = files(two.path)
    with pytest.raises(
        StorageError, match=r"has work that is not there \(metrics.jsonl\). To go on from the bucket move"
    ):
        Home.of(address, tmp_path / "b").take(30)
    assert files(two.path) == before
    assert again.bucket.read("metrics.jsonl") == one.metrics_path.read_bytes()


def test_a_run_that_another_machine_took_over_trains_to_its_end_and_then_says_so(address, tmp_path, caplog):
    home = Home.of(address, tmp_path / "a")
    run = make_run(home.folder, address)
    pushing = Mirror(home, 0.1, Console(file=(tmp_path / "said").open("w")))
    pushing.__enter__()
    wait_until(lambda: home.bucket.read("status.json") is not None)
    Home.of(address, tmp_path / "b").take(30)
    run.log("grpo", 9, {"loss": 1.0})
    wait_until(lambda: "nothing more is pushed" in caplog.text)
    with pytest.raises(TakenOverError, match="which keeps this run's work"):
        pushing.__exit__(None, None, None)
    assert caplog.text.count("nothing more is pushed") == 1


def test_a_pull_that_was_killed_goes_on(address, tmp_path):
    home = Home.of(address, tmp_path / "a")
    run = make_run(home.folder, address)
    home.push()
    killed = Home.of(address, tmp_path / "b")

    class Dead(Bucket):
        def get(self, name, size, target):
            super().get(name, size, target)
            if name == "metrics.jsonl":
                raise Killed

    killed.bucket = Dead(address)
    with pytest.raises(Killed):
        killed.pull(everything)
    assert files(pulled(address, tmp_path / "b").path).keys() >= files(run.path).keys()


def test_a_run_that_is_live_elsewhere_is_refused(address, tmp_path, monkeypatch):
    monkeypatch.setattr("hatch_ray.storage.LOOK_SECONDS", 0.1)
    home = Home.of(address, tmp_path / "a")
    run = make_run(home.folder, address)
    home.take(0.1)
    write_status(run, 5, "running")
    home.push()
    other = Home.of(address, tmp_path / "b")
    with pytest.raises(StorageError, match=rf"is being trained by process {os.getpid()} on {socket.gethostname()}"):
        other.take(0.1)
    write_status(run, 6, "running", pid=2**22 + 1)
    home.push()
    other.pull_to_train()  # a process of this machine that is no more
    write_status(run, 7, "running", "elsewhere")
    home.push()
    beats = threading.Timer(1.0, lambda: (write_status(run, 8, "running", "elsewhere"), home.push()))
    beats.start()
    with pytest.raises(StorageError, match="on elsewhere"):
        other.take(0.1)
    beats.join()
    began = time.monotonic()
    other.take(0.1)  # silent for 3 x 0.1 s + 5 s
    assert time.monotonic() - began > 5


def test_readers_pull_what_they_need_and_use_the_folder_of_a_run_that_is_here(address, tmp_path):
    home = Home.of(address, tmp_path / "a")
    run = make_run(home.folder, address)
    home.push()
    assert local_run(address, for_status, tmp_path / "b") == run.path, "this machine has it"
    shutil.move(run.path, tmp_path / "away")
    there = local_run(address, for_status, tmp_path / "b")
    assert files(there).keys() == {"config.yaml", "progress.json", "status.json"}
    assert local_run(address, for_report, tmp_path / "b") == there
    assert files(there).keys() == {"config.yaml", "progress.json", "status.json", "metrics.jsonl", "ledger.jsonl"}
    with pytest.raises(StorageError, match=r"not worked on here; .* hatch scale [gs3]+://"):
        driven_folder(address, "scale")
    (there / "report.html").write_text("<p>")
    reader = Home(address, there)
    assert reader.put_back("report.html") == 1 and reader.put_back("report.html") == 0
    shutil.move(tmp_path / "away", run.path)
    run.log("grpo", 9, {"loss": 1.0})
    home.push()
    assert driven_folder(address, "scale") == run.path
    shutil.move(run.path, tmp_path / "away")
    assert local_run(address, for_report, tmp_path / "b") == there
    assert len(metrics(there, "grpo")) == STEPS + 1, "pulled again, and the report in between took nothing over"
    shutil.move(tmp_path / "away", run.path)
    home.push()
    assert home.bucket.read("report.html") == b"<p>"


def test_a_home_that_was_emptied_gets_everything_again(address, tmp_path):
    home = Home.of(address, tmp_path / "a")
    run = make_run(home.folder, address)
    home.push()
    for name in home.bucket.list():
        home.bucket.delete(name)
    home.push()
    assert files(pulled(address, tmp_path / "b").path) == files(run.path)


def test_a_bucket_that_is_not_there_or_not_allowed_is_one_line_before_anything_is_trained(server, tmp_path):
    home = Home.of("s3://no-such-bucket/run", tmp_path)
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/run: .*NO_SUCH_BUCKET") as refusal:
        home.take(30)
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
    first = Home.of(address, tmp_path / "a")
    try:
        wait_until(lambda: process.poll() is not None or "checkpoint" in str(states_of(first.bucket)), 180)
        wait_for_step(process, first.folder, "cold_start", max(states_of(first.bucket).values()) + 3, 60)
    finally:
        kill(process)
    assert process.stdout is not None
    assert f"run folder: {first.folder}, pushed to {address}" in process.stdout.read()
    reached = max(states_of(first.bucket).values())
    before = metrics(first.folder, "cold_start")
    assert 10 <= reached < before[-1]["step"] < TRAINED, "it was killed between a state in the bucket and the end"

    output = hatch_here(*words, f"storage.work_dir={tmp_path / 'b'}")
    assert f"pushed: {address}" in output
    second = RunFolder(Home.of(address, tmp_path / "b").folder)
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
    assert first.bucket.read("report.html") == (there / "report.html").read_bytes()
    assert not (there / "cold_start").exists() and b"cold_start" in (there / "metrics.jsonl").read_bytes()
    for command in (["scale", address, "reward=2"], ["serve", address, "--follow"]):
        with pytest.raises(StorageError, match="not worked on here"):
            hatch_here(*command)


def states_of(bucket: Bucket) -> dict[str, int]:
    """The whole checkpoints in the bucket, with their steps."""
    names = [name for name in bucket.list() if "/checkpoints/" in name and name.endswith("/manifest.json")]
    return {name: int(name.split("/")[2].removeprefix("step-")) for name in names}
