"""Loss and gradients of a batch that was kept because they were not finite, on this machine.

    python -m tools.replay RUN/bad_batches/step-000124-rank0

The learner's own code computes them, from the weights before the update; what is looked at on the way says where it
began: in the weights, the images, vLLM's log-probabilities, a layer's output, the loss, or a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer

from actors.learner.bad_batches import BadBatch
from actors.learner.learner import Learner, Row, TokenTerms
from hatch_ray.cli import run_command
from hatch_ray.learning.workers import Workers
from hatch_ray.storage import local_run
from tools.kept_batches import read_bad_batch

app = typer.Typer(add_completion=False)

LISTED = 10
"""Names listed of each kind."""


@dataclass(frozen=True)
class ReplyFacts:
    """One reply of the batch; `logprob` and the ratios are over its tokens.

    ratio     largest pi / pi_old; correction: largest pi_old / pi_vllm.
    loss      its share of the batch's loss.
    gradient  whether the gradient of this reply alone is finite; None where that was not asked.
    """

    sample: str
    number: int
    tokens: int
    logprob_min: float
    logprob_max: float
    ratio: float
    correction: float
    advantage: float
    loss: float
    gradient: bool | None


@dataclass(frozen=True)
class Replay:
    """What a replay found.

    inputs          names of weights, images and replies that are not finite before anything is computed.
    first_output    the first layer, in the order of the forward pass, whose output is not finite; "" where none is.
    first_gradient  the first parameter, in the order of the backward pass, whose gradient is not finite.
    bad_gradients   all of those; `parameters` is how many learn. gap: the largest difference of a token's
                    log-probability from the run's, nats.
    """

    replies: tuple[ReplyFacts, ...]
    inputs: tuple[str, ...]
    first_output: str
    first_gradient: str
    bad_gradients: tuple[str, ...]
    parameters: int
    norm: float
    gap: float

    @property
    def finite(self) -> bool:
        """Whether nothing is wrong here."""
        replies = all(_finite(torch.tensor([reply.loss])) for reply in self.replies)
        return replies and not (self.inputs or self.first_output or self.bad_gradients)


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def load_learner(batch: BadBatch, weights: Mapping[str, torch.Tensor], model: str, device: torch.device) -> Learner:
    """The learner as it was before the update. Raises ValueError when the weights are not this model's."""
    learner = Learner(batch.config, model, 1, Workers(batch.config.learner, device))
    learning = {name: p for name, p in learner.model.named_parameters() if p.requires_grad}
    odd = sorted(learning.keys() ^ weights.keys())
    odd += [name for name in learning.keys() & weights.keys() if learning[name].shape != weights[name].shape]
    if odd:
        raise ValueError(f"the kept weights are not those of {model}: {', '.join(odd[:LISTED])} differ; name the right "
                         "model with --model")  # fmt: skip
    with torch.no_grad():
        for name, parameter in learning.items():
            parameter.copy_(weights[name])
    return learner


def replay_batch(learner: Learner, batch: BadBatch) -> Replay:
    """Forward and backward as the run did it; where a gradient is not finite, once more for each reply alone."""
    batches = learner.batches(batch.prompts, batch.groups)
    old = _split_old(batches, batch) if batch.update else {}
    learner.optimizer.zero_grad(set_to_none=True)
    with _watch(learner) as watch:
        by_number = _terms(learner, batches, old, batch)
    terms = [by_number[number] for number in range(len(batches))]
    learning = {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}
    bad = tuple(name for name, gradient in learning.items() if not _finite(gradient))
    norm = torch.nn.utils.get_total_norm(list(learning.values())).item()
    replies = tuple(_reply_facts(learner, batch, terms, alone=bool(bad)))
    here = torch.cat([found.logprobs.detach() for found in terms]).cpu()
    return Replay(
        replies=replies,
        inputs=tuple(_bad_inputs(learner, batch)),
        first_output=watch["output"],
        first_gradient=watch["gradient"],
        bad_gradients=bad,
        parameters=len(learning),
        norm=norm,
        gap=0.0 if batch.update else (here - batch.old).abs().nan_to_num(0.0, 0.0, 0.0).max().item(),
    )


def _terms(
    learner: Learner, batches: list[list[Row]], old: dict[int, torch.Tensor], batch: BadBatch
) -> dict[int, TokenTerms]:
    """Forward and backward of these micro-batches; what GRPO makes of each, by number."""
    units = learner.units(batches)
    packed = [learner.packed(rows) for rows in batches]
    reference = learner.reference_logprobs(units, packed)
    terms = {}
    for number, logprobs, entropy in learner.scorer.each(units, packed):
        assert number is not None, "one worker alone makes no pass for others"
        terms[number] = learner.token_terms(
            batches[number], packed[number], logprobs, entropy, old, number, mean_reply(batch), reference
        )
        (terms[number].loss.loss.sum() / batch.tokens).backward()
    return terms


def mean_reply(batch: BadBatch) -> float:
    """Tokens a reply of this worker's groups; the run had those of all workers (grpo.mean=sequence)."""
    replies = [reply for group in batch.groups for reply in group.rollout.replies]
    return sum(len(reply.token_ids) for reply in replies) / len(replies)


def _split_old(batches: list[list[Row]], batch: BadBatch) -> dict[int, torch.Tensor]:
    lengths = [sum(len(reply.token_ids) for row in rows for reply in row.replies) for rows in batches]
    return dict(enumerate(batch.old.split(lengths)))


def _bad_inputs(learner: Learner, batch: BadBatch) -> Iterator[str]:
    for name, parameter in learner.model.named_parameters():
        if not _finite(parameter):
            yield f"weight {name}"
    for prompt, group in zip(batch.prompts, batch.groups, strict=True):
        for number, image in enumerate(prompt.images):
            if not _finite(image.pixels):
                yield f"image {number} of sample {group.request.id}"
        for number, reply in enumerate(group.rollout.replies):
            if not _finite(torch.tensor(reply.logprobs)):
                yield f"vLLM's log-probabilities of sample {group.request.id}, reply {number}"
        if not _finite(torch.tensor(group.advantages)):
            yield f"advantages of sample {group.request.id}"


@contextmanager
def _watch(learner: Learner) -> Iterator[dict[str, str]]:
    """Note the first module whose output, and the first parameter whose gradient, is not finite."""
    seen = {"output": "", "gradient": ""}

    def look_forward(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, (tuple, list)) else [output]
            if not seen["output"] and any(
                isinstance(t, torch.Tensor) and t.is_floating_point() and not _finite(t) for t in tensors
            ):
                seen["output"] = name

        return hook

    def look_back(name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            if not seen["gradient"] and parameter.grad is not None and not _finite(parameter.grad):
                seen["gradient"] = name

        return hook

    hooks = [module.register_forward_hook(look_forward(name)) for name, module in learner.model.named_modules() if name]
    hooks += [
        parameter.register_post_accumulate_grad_hook(look_back(name))
        for name, parameter in learner.model.named_parameters()
        if parameter.requires_grad
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _reply_facts(learner: Learner, batch: BadBatch, terms: list[TokenTerms], alone: bool) -> Iterator[ReplyFacts]:
    """Of every reply in the order of groups, which is the order of the micro-batches' tokens too."""
    lengths = [len(reply.token_ids) for group in batch.groups for reply in group.rollout.replies]

    def by_reply(part: Callable[[TokenTerms], torch.Tensor]) -> Iterator[torch.Tensor]:
        return iter(torch.cat([part(found).detach() for found in terms]).split(lengths))

    logprobs, old = by_reply(lambda found: found.logprobs), by_reply(lambda found: found.old)
    sampled, losses = by_reply(lambda found: found.sampled), by_reply(lambda found: found.loss.loss)
    for prompt, group in zip(batch.prompts, batch.groups, strict=True):
        for number, (reply, advantage) in enumerate(zip(group.rollout.replies, group.advantages, strict=True)):
            here, before = next(logprobs), next(old)
            row = Row(prompt, (reply,), (float(advantage),))
            yield ReplyFacts(
                sample=group.request.id,
                number=number,
                tokens=len(reply.token_ids),
                logprob_min=here.min().item(),
                logprob_max=here.max().item(),
                ratio=(here - before).exp().max().item(),
                correction=(before - next(sampled)).exp().max().item(),
                advantage=float(advantage),
                loss=next(losses).sum().item() / batch.tokens,
                gradient=_gradient_alone(learner, row, before, batch) if alone else None,
            )


def _gradient_alone(learner: Learner, row: Row, old: torch.Tensor, batch: BadBatch) -> bool:
    """Whether the gradient of one reply by itself is finite."""
    learner.optimizer.zero_grad(set_to_none=True)
    _terms(learner, [[row]], {0: old} if batch.update else {}, batch)
    return all(p.grad is None or _finite(p.grad) for p in learner.learning)


def describe(batch: BadBatch, replay: Replay, device: torch.device) -> list[str]:
    """The replay in words, a line each."""
    bad = [name for name, value in batch.own_sums.items() if value in ("nan", "inf", "-inf")]
    lines = [
        f"step {batch.step}, rank {batch.rank} of {batch.world}, update {batch.update + 1} of "
        f"{batch.config.grpo.updates_per_step}: in the run {_listed(bad) or 'no sum of this rank'} was not finite, and "
        f"the gradients of {len(batch.bad_gradients)} parameters",
        f"here, on {device.type} in {batch.config.learner.compute}:",
        f"  {'sample':<24} {'reply':>5} {'tokens':>6} {'logprob from':>12} {'to':>9} {'ratio':>9} {'to vLLM':>9} "
        f"{'advantage':>9} {'loss':>10} gradient",
    ]
    for one in replay.replies:
        gradient = {True: "finite", False: "NOT FINITE", None: "finite"}[one.gradient]
        lines.append(
            f"  {one.sample[:24]:<24} {one.number:>5} {one.tokens:>6} {one.logprob_min:>12.4g} {one.logprob_max:>9.3g} "
            f"{one.ratio:>9.3g} {one.correction:>9.3g} {one.advantage:>9.3g} {one.loss:>10.3g} {gradient}"
        )
    lines += [f"not finite before anything is computed: {name}" for name in replay.inputs[:LISTED]]
    if len(replay.inputs) > LISTED:
        lines.append(f"  and {len(replay.inputs) - LISTED} more")
    lines.append(f"first layer with an output that is not finite: {replay.first_output or 'none'}")
    lines.append(f"first gradient that is not finite, on the way back: {replay.first_gradient or 'none'}")
    lines.append(
        f"gradients not finite: {len(replay.bad_gradients)} of {replay.parameters} parameters; norm {replay.norm:.4g}"
    )
    if replay.bad_gradients:
        lines.append(f"  {_listed(replay.bad_gradients)}")
    lines.append(f"log-probabilities here and in the run differ by at most {replay.gap:.3g} nats")
    if replay.finite:
        lines.append(f"all is finite here. {_why_finite(batch)}")
    return lines


def _why_finite(batch: BadBatch) -> str:
    if batch.world > 1 and all(value not in ("nan", "inf", "-inf") for value in batch.own_sums.values()):
        return "This rank's own sums were finite in the run too: look at the other ranks' folders of this step"
    return "The batch is not to blame alone: the run's device, dtype or kernels differ from this machine's"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


@app.command()
def main(
    batch: Annotated[str, typer.Argument(help="folder in RUN/bad_batches, or a file in it", metavar="BATCH")],
    model: Annotated[str, typer.Option(help="the stage's first model, where it is not at its old place")] = "",
    device: Annotated[str, typer.Option(help="cpu or cuda; default: cuda where there is one")] = "",
) -> None:
    """Compute a GRPO batch again whose loss or gradient was not finite, and print where that begins."""
    run, inside, name = batch.partition("/bad_batches/")
    home = local_run(run, "replay")
    kept, weights = read_bad_batch(home / f"{inside}{name}".lstrip("/"))
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    learner = load_learner(kept, weights, model or kept.model, chosen)
    print("\n".join(describe(kept, replay_batch(learner, kept), chosen)))


if __name__ == "__main__":
    run_command(app)
