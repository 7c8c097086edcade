"""`hatch ask`: one question to a service that runs, or to one that is started for it, with the reply in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hatch_ray.config import Config
from hatch_ray.run_folder import RunFolder
from serve.client import Reasoner, ReasonError
from serve.schema import Pose, ReasonReply

PROBLEMS_SHOWN = 6
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic")


def is_url(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def is_address(target: str) -> bool:
    """Whether it looks like HOST:PORT and is no folder here."""
    host, colon, port = target.rstrip("/").rpartition(":")
    return bool(colon and host and port.isdigit() and "/" not in host) and not Path(target).exists()


def ask_service(
    url: str, key: str, images: Sequence[Path], question: str, fields: dict[str, Any], as_json: bool, console: Console
) -> None:
    """Ask the service at `url` and print the reply. Raises ValueError with the service's reason."""
    with Reasoner(url, key or None) as reasoner:
        try:
            reply = reasoner.ask(images, question, **fields)
        except ReasonError as error:
            raise ValueError(f"{error.code}: {error}") from None
    if as_json:
        print(json.dumps(reply.model_dump(by_alias=True), indent=2))
    else:
        print_reply(reply, console)


@contextmanager
def service_of(config: Config, run: RunFolder, console: Console) -> Iterator[str]:
    """The URL of the service of a run: the one that runs at its serve.host and port, else one for this question."""
    from serve.launch import start_service, stop_service
    from serve.settings import Settings

    host = "127.0.0.1" if config.serve.host == "0.0.0.0" else config.serve.host
    url = f"http://{host}:{config.serve.port}"
    if (run.model / "config.json").is_file() and _version_at(url) == Settings.of(config, run).version:
        console.print(f"asking the service that runs at {url}", style="dim")
        yield url
        return
    console.print("starting the run's model for this question (`hatch serve` keeps it at hand) ...", style="dim")
    try:
        yield start_service(config, run, port=0)
    finally:
        stop_service()


def _version_at(url: str) -> str:
    """The version that a service there names; empty when there is none."""
    try:
        with Reasoner(url, timeout_s=2, retries=0) as reasoner:
            return str(reasoner.health().get("model_version", ""))
    except ReasonError:
        return ""


def print_reply(reply: ReasonReply, console: Console) -> None:
    """Answer, vote, motion, consistency and what is wrong, for people."""
    console.print(reply.answer or "no answer", style="bold", markup=False)
    if reply.votes is not None:
        counts = ", ".join(f"{name} ({weight:.2f})" for name, weight in reply.votes.counts.items())
        spread = "" if reply.votes.spread is None else f", middle half within {reply.votes.spread:g}"
        console.print(f"{reply.votes.samples} replies, by weight: {counts or 'none can be read'}", markup=False)
        console.print(f"agreement {reply.votes.agreement:.0%}{spread}")
    if reply.actions:
        console.print(_motion_table(reply))
    if reply.consistency is not None:
        console.print(
            f"consistency: the paths between the images disagree by at most {reply.consistency.metres:.2f} m and "
            f"{reply.consistency.degrees:.0f}°"
        )
    elif reply.actions:
        console.print(f"consistency: unknown, {reply.consistency_why}")
    if reply.problems:
        shown = ", ".join(reply.problems[:PROBLEMS_SHOWN])
        console.print(f"the model's text is not as asked ({shown}):", style="yellow")
        console.print(reply.text, markup=False, style="dim")
    console.print(f"{reply.model_version}, {reply.tokens.reply} tokens, {reply.seconds.total:.2f} s", style="dim")


def _motion_table(reply: ReasonReply) -> Table:
    table = Table("images", "how the camera moves", "ends at", "turned by", title_justify="left")
    poses = {(pose.source, pose.to): pose for pose in reply.poses}
    for plan in reply.actions:
        pose = poses[plan.source, plan.to]
        table.add_row(f"{plan.source} → {plan.to}", plan.words, _place(pose), f"{pose.rotation_deg:.0f}°")
    return table


def _place(pose: Pose) -> str:
    """ "0.4 m right, 1.2 m ahead" of the first camera."""
    right, down, ahead = pose.translation_m
    names = ((right, "right", "left"), (-down, "up", "down"), (ahead, "ahead", "behind"))
    parts = [f"{abs(size):.1f} m {plus if size > 0 else minus}" for size, plus, minus in names if abs(size) >= 0.05]
    return ", ".join(parts) or "the same place"
