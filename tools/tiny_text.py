"""Text from which hatch-tiny's tokenizer is made: the project's prompts and replies, and the words of its questions."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hatch_ray.geometry.actions import ATOMS
from hatch_ray.protocol.prompt import ANSWER_LINE, Mode, Template, build_prompt, format_plans

MODES: tuple[Mode, ...] = ("actions", "direct")
TEMPLATES: tuple[Template, ...] = ("full-v1", "compact-v1")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black", "brown", "gray")
KINDS = (
    "chair", "table", "sofa", "bed", "cabinet", "lamp", "plant", "pot", "box", "shelf", "ball", "stool", "wall",
    "floor", "sky", "ceiling", "door", "window", "nothing", "room", "desk", "barrel",
)  # fmt: skip
WORDS = """
view compass seen match place position patch heading wall ahead facing where direction none
image images photo first second third camera cameras observer heading pitch height wall ahead patch row column at
from to of the a is in on and as seen by what which where how far deep depth distance bearing direction difference
degrees metres meters centimetres left right up down front behind front-left front-right back-left back-right above
below north east south west same turn turns turned move moves moved forward backward forwards rotate rotated object
objects point points marked mark box boxes letter number answer answers action actions then pairs position matching
center centre between two other relative relation spatial nearest farthest closer farther near visible not none yes no
taken when you stand standing facing face looking look does do was were with its it this that are given shown drawn
coordinates pixel pixels width height infer change motion predict prediction give find estimate options choose
horizontal vertical straight line direct your assistant helpful system user question Question Images Which What How
Where The In From If Give Find Two A B C D Suppose Answer Actions Image View Point Camera red_point blue_point
""".split()
QUESTIONS = (
    "What is the depth of the {a} in image {i}, in metres?",
    "How far is the {a} from the {b}, center to center, in metres?",
    "The {a} is marked with a red point in image {i}, the {b} with a blue point in image {j}. ",
    "What is the distance between the two points in metres?",
    "The depth of the red point is {m} metres. What is the depth of the blue point in metres?",
    "The box [{x},{y},{x},{y}] in image {i} shows the {a}. What is its box in image {j}?",
    "How does the camera move from image {i} to image {j}?",
    "Where is the {a} as seen by the camera of image {j}?",
    "Where is the camera of image {j} seen from image {i}? Give its position in image {i} and its depth in metres.",
    "A. front left B. front right C. behind left D. behind right",
    "A. {a} B. {b} C. {a} D. {b}",
    "camera{i}from{j}?right{d},{m}",
    "from{i}patch{j}:{d}?left{d},{m}",
    "match{i}:{d}in{j}?none",
    "heading{i}?{x}",
    "ahead{i}?{m}",
    "position{i}?east{m}south{m}",
    "position{i}?west{m}north{m}",
    "direction{i}to{j}?left{d}",
    "facing{i}:{d}?{x}",
    "depth{i}:{d}?{m}",
    "where{i} {a}?right{d},{m}",
    "({x},{y}),{m}",
    "move_right:{m},move_up:-{m},move_forward:-{m},rotate_up:-{d},rotate_right:{d}",
)


def random_reply(rng: random.Random, n_views: int) -> str:
    """An action block of plausible form with random numbers, then an answer: shapes for the tokenizer, no gold."""
    plans = {}
    for i in range(n_views):
        for j in range(i + 1, n_views):
            left, up = rng.random() < 0.5, rng.random() < 0.5
            atoms = [
                (ATOMS[left], float(rng.randint(1, 90))),
                (ATOMS[2 + up], float(rng.randint(1, 20))),
                (ATOMS[4] if rng.random() < 0.95 else rng.choice(ATOMS[5:]), round(rng.uniform(0.1, 3), 1)),
                (ATOMS[not left], float(rng.randint(1, 90))),
                (ATOMS[3 - up], float(rng.randint(1, 20))),
            ]
            plans[i, j] = tuple(atom for atom in atoms if rng.random() < 0.85)
    # A number as answer: a letter would merge with its tags into one rare token for the whole end of a reply.
    return f"<action>{format_plans(plans)}</action><answer>{rng.uniform(0, 4):.1f}</answer>"


def fill(template: str, rng: random.Random) -> str:
    """A template with random things and numbers."""
    return template.format(
        a=f"{rng.choice(COLORS)} {rng.choice(KINDS)}",
        b=f"{rng.choice(COLORS)} {rng.choice(KINDS)}",
        i=rng.randint(0, 2),
        j=rng.randint(0, 2),
        m=round(rng.uniform(0, 6), 1),
        d=rng.randint(0, 90),
        x=rng.randint(0, 999),
        y=rng.randint(0, 999),
    )


def tokenizer_corpus(seed: int = 0) -> Iterator[str]:
    """A few thousand lines, the same for the same seed."""
    rng = random.Random(seed)
    for word in [*WORDS, *COLORS, *KINDS] * 3:
        yield word
        yield f"a {word}"
    for _ in range(300):
        yield random_reply(rng, rng.choice([2, 2, 3]))
        for template in QUESTIONS:
            yield fill(template, rng)
    for form in ANSWER_LINE:
        for n_views in (1, 2, 3):
            for mode in MODES:
                for prompt_template in TEMPLATES:
                    content = build_prompt("", n_views, form, mode, prompt_template)[0]["content"]
                    for _ in range(3):
                        yield "".join(part.get("text", "") for part in content)
    yield "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|im_start|>assistant\n"
