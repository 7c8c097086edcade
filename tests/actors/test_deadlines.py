"""A wait that does not end: what it says, and what it knows of the others. Real processes, stopped and killed."""

import asyncio
import faulthandler
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from actors.experience.queues import ExperienceBoard, WeightsBoard
from actors.runtime.deadlines import StageTimeoutError, enter_process, limits, wait_for
from actors.runtime.messages import Shard, WeightsHandle
from actors.runtime.stack_dumps import FRAME, Process, describe, read_process, signal_all
from hatch_ray.config import ConfigError, make_config
from tests.support.runs import REPOSITORY

SECONDS = 3


@pytest.fixture
def entered(tmp_path):
    """This process as a run's driver, with a deadline of its own; all is undone afterwards."""
    before = dict(vars(limits))
    config = make_config({"run_dir": str(tmp_path), "deadlines": {"start_seconds": 7, "call_seconds": SECONDS}})
    enter_process("driver", config, first=True)
    yield config
    faulthandler.unregister(signal.SIGUSR1)
    vars(limits).update(before)
    limits.stacks = None  # that of an earlier test no longer listens


def test_deadlines_are_set_by_the_config(entered):
    assert (limits.start, limits.call) == (7, SECONDS)
    with pytest.raises(ConfigError, match=r"deadlines\.call_seconds"):
        make_config({"deadlines": {"call_seconds": 0}})


def test_a_folder_that_is_no_run_gets_no_stacks(tmp_path, entered):
    enter_process("engine", make_config({"run_dir": str(tmp_path / "absent")}))
    assert not (tmp_path / "absent").exists()


def test_boards_say_who_waits():
    async def scenario():
        experience, weights = ExperienceBoard(), WeightsBoard(0)
        waits = [asyncio.create_task(experience.take(4, rank)) for rank in (0, 1)]
        version = asyncio.create_task(weights.wait_for(2))
        await asyncio.sleep(0)
        assert await experience.waiting() == [f"learner rank {rank} waits for its shard of step 4" for rank in (0, 1)]
        assert await weights.waiting() == ["the driver waits for version 2, the newest is 0"]
        await experience.put([Shard(4, (), 1, 1, 0.0)])
        assert await waits[0]
        assert await experience.waiting() == ["learner rank 1 waits for its shard of step 4"]
        for number in (1, 2):
            await weights.publish(WeightsHandle(number, None))
        assert (await version)[0] == 2
        assert await weights.waiting() == []
        waits[1].cancel()
        await asyncio.gather(waits[1], return_exceptions=True)
        assert await experience.waiting() == []

    asyncio.run(scenario())


def test_the_probes_of_the_learner_are_waited_for():
    async def scenario():
        board = ExperienceBoard()
        asked = asyncio.create_task(board.probes())
        await asyncio.sleep(0)
        await board.put_probes(["scores"])
        assert await asked == ("scores",)
        stopped = ExperienceBoard()
        asked = asyncio.create_task(stopped.probes())
        await stopped.stop()
        assert await asked == ()

    asyncio.run(scenario())


def test_a_dump_is_read_to_the_innermost_own_frame():
    dump = (
        'Thread 0x01 (most recent call first):\n  File "/x/lib/queue.py", line 3 in get\n\n'
        'Thread 0x02 (most recent call first):\n  File "/x/actors/runtime/deadlines.py", line 90 in wait_for\n'
        '  File "/x/actors/learner/worker.py", line 299 in learner_loop\n'
        '  File "/x/actors/stages/fit.py", line 1 in run\n'
    )
    assert describe("sleeping", dump) == "learner_loop (actors/learner/worker.py:299)"
    assert describe("sleeping", 'Thread 0x01 (most recent call first):\n  File "/x/queue.py", line 3 in get') == "idle"
    assert describe("stopped", "") == "stopped"
    assert describe("sleeping", "") == "sleeping, did not write its stacks"


def test_a_later_process_with_the_same_number_is_another():
    assert Process("learner", "", os.getpid(), 1.0).state() == "gone"


def test_a_process_that_does_not_listen_is_not_ended_by_the_question(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"],
                          stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout.readline() == b"1\n"
        one = Process("engine", "", process.pid, psutil.Process(process.pid).create_time())
        while psutil.Process(process.pid).status() != psutil.STATUS_SLEEPING:  # it has only said that it is about to
            time.sleep(0.01)
        assert signal_all([one]) == {one: "sleeping"}
        time.sleep(0.3)
        assert process.poll() is None
        process.kill()
    (tmp_path / "half.txt").write_text('{"role": "engine", "no')
    assert read_process(tmp_path / "half.txt") is None


WORKER = """
import sys, datetime, torch
from torch import distributed
from actors.runtime.deadlines import CollectiveError, collectives, enter_process
from hatch_ray.config import make_config
folder, rank, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
enter_process(f"learner rank {rank}", make_config({"run_dir": folder}))
distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
                               timeout=datetime.timedelta(seconds=60))
group = distributed.new_group(timeout=datetime.timedelta(seconds=seconds))
distributed.all_reduce(torch.ones(2), group=group)
print("ready", flush=True)
sys.stdin.readline()
try:
    with collectives("grpo: step 3", rank):
        distributed.all_reduce(torch.ones(2), group=group)
except CollectiveError as error:
    print(error, flush=True)
"""


@pytest.mark.parametrize(
    ("stop", "reason", "state"),
    [(signal.SIGSTOP, "a worker did not come", "stopped"), (signal.SIGKILL, "a worker is gone", "gone")],
)
def test_a_collective_without_a_peer_names_stage_step_and_rank(tmp_path, stop, reason, state):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(rank), str(SECONDS)], cwd=REPOSITORY, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        assert [worker.stdout.readline() for worker in workers] == ["ready\n", "ready\n"]
        os.kill(workers[1].pid, stop)
        said, _ = workers[0].communicate("go\n", timeout=120)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert said.startswith(f"grpo: step 3, rank 0: {reason}; the collective failed after ")
    assert f"learner rank 1 (process {workers[1].pid}): {state}\n" in said
    assert f"all stacks: {tmp_path}/stacks" in said


def test_other_errors_pass_through_a_collective():
    from actors.runtime.deadlines import collectives

    with pytest.raises(RuntimeError, match=r"^shapes differ$"), collectives("grpo: step 3", 0):
        raise RuntimeError("shapes differ")


def test_a_deadline_that_expires_says_who_waits_for_what(ray_cluster, entered, tmp_path):
    class Worker:
        def __init__(self, config):
            enter_process("learner rank 1", config)

        def pid(self):
            return os.getpid()

        def work(self, board):
            return wait_for(board.take.remote(5, 1), "shard of step 5", 60)

    board = ray_cluster.remote(ExperienceBoard).options(num_cpus=0, max_concurrency=10).remote()
    limits.boards = (board,)
    worker = ray_cluster.remote(Worker).options(num_cpus=0).remote(entered)
    pid = ray_cluster.get(worker.pid.remote(), timeout=120)
    answer = worker.work.remote(board)
    with pytest.raises(StageTimeoutError) as caught:
        wait_for(answer, "grpo: step 5 of the learner", SECONDS)
    text = str(caught.value)
    assert text.startswith(f"grpo: step 5 of the learner: no answer in {SECONDS} s.")
    assert "learner rank 1 waits for its shard of step 5" in text
    assert re.search(rf"learner rank 1 \(process {pid}\): work \(tests/actors/test_deadlines\.py:\d+\)", text)
    assert re.search(
        rf"driver \(process {os.getpid()}\): test_a_deadline\w+ \(tests/actors/test_deadlines\.py:\d+\)", text
    )
    (written,) = (tmp_path / "stacks").glob(f"learner-rank-1-*-{pid}.txt")
    assert "wait_for" in written.read_text()

    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StageTimeoutError, match=rf"learner rank 1 \(process {pid}\): stopped"):
            wait_for(answer, "grpo: step 5 of the learner", 0.5)
    finally:
        os.kill(pid, signal.SIGCONT)
        ray_cluster.kill(worker)
        ray_cluster.kill(board)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/home/me/hatch-ray/actors/rollout/engine.py", "actors/rollout/engine.py"),
        ("/home/serve/actors/hatch-ray/hatch_ray/model/base.py", "hatch_ray/model/base.py"),
        ("/tests/hatch-ray/tests/actors/test_deadlines.py", "tests/actors/test_deadlines.py"),
        ("/home/me/tests/test_own.py", "tests/test_own.py"),
    ],
)
def test_a_frame_of_ours_is_found_wherever_the_house_lies(path: str, place: str) -> None:
    found = FRAME.search(f'  File "{path}", line 7 in work')
    assert found is not None and found.groups() == (place, "7", "work")
