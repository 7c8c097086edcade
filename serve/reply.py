"""The model's text as a reply: parsed by the parser that training rewards, composed, and voted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from hatch_ray.geometry.actions import Motion, motion
from hatch_ray.geometry.consistency import triples
from hatch_ray.protocol.response import Response
from hatch_ray.report.words import atoms_in_words
from hatch_ray.sample import Atom
from serve.prepare import form_of
from serve.schema import (
    Consistency,
    Plan,
    Pose,
    ReasonReply,
    ReasonRequest,
    Seconds,
    Tokens,
    TripleFigure,
    VotedReply,
    Votes,
)
from serve.settings import Settings
from serve.values import typed_value
from serve.votes import Ballot, elect, weight_of

Clock = dict[str, float]
"""Seconds by phase, filled as the request goes on: queue, decode, first_token, generate, read, total."""


@dataclass
class Written:
    """What the engine wrote: by sample the text, its tokens and why it ended ("stop" or "length")."""

    texts: list[str]
    lengths: list[int]
    ends: list[str]
    prompt_tokens: int = 0
    image_tokens: int = 0


@dataclass(frozen=True)
class _Read(Ballot):
    """One sample's text, read. problem: why there is no value."""

    text: str
    response: Response
    motions: dict[tuple[int, int], Motion]
    consistency: Consistency | None
    problem: str


def read(written: Written, request: ReasonRequest, settings: Settings) -> ReasonReply:
    """The reply of one sample, or the one that several samples elect; `seconds` are left at 0."""
    n_views, system = len(request.images), settings.system
    form, planned = form_of(request, system.answer_forms), system.writes_plans(settings.stage)
    samples = []
    for text in written.texts:
        response = system.read(text, n_views, settings.stage)
        motions = {pair: motion(atoms, None) for pair, atoms in response.plans.items()}
        value, problem = typed_value(response.answer, form, len(request.options))
        found = consistency_of(motions)
        weight = weight_of(found, planned and n_views > 2)
        samples.append(_Read(response.answer, value, weight, text, response, motions, found, problem))
    votes, chosen = None, samples[0]
    if request.samples > 1:
        vote = elect(samples, form)
        chosen = samples[vote.winner]
        replies = [
            VotedReply(answer=one.answer, text=one.text, weight=round(one.weight, 6), consistency=one.consistency)
            for one in samples
        ]
        votes = Votes(
            samples=len(samples), counts=vote.counts, agreement=vote.agreement, spread=vote.spread, replies=replies
        )
    # Without an answer the parser has named the problem already.
    problems = [*chosen.response.problems, *([chosen.problem] if chosen.problem and chosen.answer else [])]
    return ReasonReply(
        answer=chosen.answer,
        value=chosen.value,
        actions=[_plan(pair, atoms) for pair, atoms in sorted(chosen.response.plans.items())],
        poses=[_pose(pair, chosen.motions[pair]) for pair in sorted(chosen.motions)],
        consistency=chosen.consistency,
        consistency_why=None if chosen.consistency else _why_none(n_views, planned),
        text=chosen.text,
        format_ok=chosen.response.format_ok,
        problems=problems,
        votes=votes,
        tokens=Tokens(prompt=written.prompt_tokens, images=written.image_tokens, reply=sum(written.lengths)),
        model_version=settings.version,
        seconds=seconds_of({}),
    )


def consistency_of(motions: dict[tuple[int, int], Motion]) -> Consistency | None:
    """The figures of all triples with their largest; None without a triple."""
    found = [
        TripleFigure(views=list(triple.views), metres=round(triple.metres, 4), degrees=round(triple.degrees, 3))
        for triple in triples(motions)
    ]
    metres, degrees = (max((getattr(one, name) for one in found), default=0.0) for name in ("metres", "degrees"))
    return Consistency(triples=found, metres=metres, degrees=degrees) if found else None


def _why_none(n_views: int, planned: bool) -> str:
    if n_views < 3:
        return "it takes three images"
    if not planned:
        return "this model writes no actions"
    return "no three images have all three of their plans written and readable"


def _plan(pair: tuple[int, int], atoms: Sequence[Atom]) -> Plan:
    action = [{name: size} for name, size in atoms]
    return Plan(source=pair[0], to=pair[1], action=action, words=", then ".join(atoms_in_words(atoms)))


def _pose(pair: tuple[int, int], step: Motion) -> Pose:
    rotation, place = step
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, place
    turn = Rotation.from_matrix(rotation).as_rotvec()
    angle = float(np.linalg.norm(turn))
    axis = turn / angle if angle > 1e-9 else np.zeros(3)
    return Pose(
        source=pair[0],
        to=pair[1],
        matrix=matrix.round(6).tolist(),
        translation_m=place.round(6).tolist(),
        rotation_deg=round(float(np.degrees(angle)), 4),
        axis=axis.round(6).tolist(),
    )


def seconds_of(clock: Clock) -> Seconds:
    """The clock as the reply shows it."""
    shown = {name: round(clock.get(name, 0.0), 4) for name in ("total", "decode", "queue", "generate", "read")}
    first = clock.get("first_token")
    return Seconds(**shown, first_token=None if first is None else round(first, 4))
