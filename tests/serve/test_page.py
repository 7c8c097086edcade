"""The page at `/`: its files, then headless Chromium on the service that all tests share.

The shared model has random weights, so questions are asked in constrained form: nonsense, but of a reply's form.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from scipy.spatial.transform import RigidTransform, Rotation

from serve.pages import FILES, FOLDER, pages
from serve.schema import Refusal
from tests import page_examples

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
WAIT_MS = 120_000
ROOM, BOX, THREE = 0, 1, 2
"""Places of the examples."""

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")


# --- files


@pytest.fixture(scope="module")
def files() -> TestClient:
    api = FastAPI()
    api.include_router(pages)
    return TestClient(api)


def test_every_file_that_the_page_names_is_there(files):
    page = files.get("/")
    assert page.headers["content-type"].startswith("text/html")
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', page.text))
    assert {"main.js", "page.css"} <= named
    for name, path in FILES.items():
        if path.suffix == ".js":
            imports = re.findall(r"""(?:from|import\()\s*['"](\.[^'"]+)['"]""", path.read_text(encoding="utf-8"))
            named |= {(path.parent / other).resolve().relative_to(FOLDER).as_posix() for other in imports}
        assert files.get(f"/page/{name}").status_code == 200
    assert "vendor/three.core.min.js" in named
    assert named <= set(FILES)


def test_policy_lets_nothing_in_from_elsewhere(files):
    for url in ("/", "/page/main.js", "/page/examples/index.json"):
        headers = files.get(url).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
    html = files.get("/").text
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", html)


@pytest.mark.parametrize("name", ["nothing.js", "..%2fpages.py", "vendor/VERSION.md", "examples", "", "/etc/passwd"])
def test_no_other_file_is_given(files, name):
    with pytest.raises(Refusal) as refusal:
        files.get(f"/page/{name}")
    assert (refusal.value.status, refusal.value.body["code"]) == (404, "not_found")


def test_examples_are_small_and_true(tmp_path, monkeypatch):
    there = FOLDER / "examples"
    assert sum(path.stat().st_size for path in there.iterdir()) < 300_000
    monkeypatch.setattr(page_examples, "FOLDER", tmp_path)
    page_examples.main()
    made = json.loads((tmp_path / "index.json").read_text(encoding="utf-8"))
    assert json.loads((there / "index.json").read_text(encoding="utf-8")) == made
    for name in (name for example in made for name in example["images"]):
        old, new = (np.asarray(Image.open(folder / name), float) for folder in (there, tmp_path))
        assert np.abs(old - new).mean() < 3
    letter, box, number = made
    assert letter["truth"]["answer"] in "ABCD"[: len(letter["options"])]
    assert len(json.loads(box["truth"]["answer"])) == 4
    assert float(number["truth"]["answer"]) > 0


# --- in Chromium


@pytest.fixture(scope="module")
def chromium(service: str) -> Iterator[Callable[..., Any]]:
    """Starts a Chromium with more arguments."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield lambda *more: playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *more])


@pytest.fixture(scope="module")
def browser(chromium: Callable[..., Any]) -> Iterator[Any]:
    with chromium() as one:
        yield one


class Watched:
    """A page of the service, with what it asked for and what its console said."""

    def __init__(self, service: str, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(WAIT_MS)
        self.page = self.context.new_page()
        self.elsewhere: list[str] = []
        self.complaints: list[str] = []
        own = (f"{service}/", f"blob:{service}/", "data:")
        self.page.on("request", lambda request: request.url.startswith(own) or self.elsewhere.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(service)
        self.page.locator(".service.ready").wait_for()
        self.page.locator(".example").nth(THREE).wait_for()

    def _console(self, message: Any) -> None:
        # Chromium itself notes every response of status 4xx and every lost connection.
        if message.type in ("warning", "error") and not message.text.startswith("Failed to load resource"):
            self.complaints.append(message.text)

    def example(self, place: int) -> dict[str, Any]:
        """Click one and have it asked in constrained form, up to the Ask button."""
        self.page.locator(".example").nth(place).click()
        self.page.locator("#thumbs li").first.wait_for()
        self.page.locator("#more summary").click()
        self.page.locator("#constrained").check()
        return json.loads((FOLDER / "examples" / "index.json").read_text(encoding="utf-8"))[place]

    def ask(self) -> None:
        self.page.get_by_role("button", name="Ask", exact=True).click()
        self.page.locator("#answer").wait_for()

    def reply(self) -> dict[str, Any]:
        """The reply that is shown, from its disclosure."""
        return json.loads(self.page.locator(".details pre").nth(1).text_content())

    def said(self) -> str:
        return self.page.locator("#live").inner_text()

    def close(self) -> None:
        self.context.close()
        assert self.elsewhere == []
        assert self.complaints == []


@pytest.fixture
def watched(service: str, browser: Any) -> Iterator[Watched]:
    page = Watched(service, browser, viewport={"width": 1280, "height": 900})
    yield page
    page.close()


def seen(canvas: Any) -> np.ndarray:
    """(h, w, 3) what an element shows, without its edges, where the focus is drawn."""
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"), int)[8:-8, 8:-8]


@in_browser
def test_a_question_becomes_an_answer_and_cameras(watched):
    page = watched.page
    example = watched.example(THREE)
    with page.expect_response("**/reason") as asked:
        watched.ask()
    assert asked.value.headers["content-type"].startswith("text/event-stream")
    reply = watched.reply()
    assert page.locator("#answer").inner_text() == reply["answer"]
    assert page.locator(".answer .question").inner_text() == example["question"]
    assert example["truth"]["answer"] in page.locator(".answer .true").inner_text()
    words = page.locator(".motion li").all_inner_texts()
    assert len(words) == 3
    assert all(plan["words"] in line for plan, line in zip(reply["actions"], words, strict=True))

    canvas = page.locator("canvas")
    assert (canvas.get_attribute("data-cameras"), canvas.get_attribute("data-textured")) == ("3", "3")
    assert "Image 2 was taken" in canvas.get_attribute("aria-label")
    before = seen(canvas)
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 500  # the photos; lines and labels alone have far fewer

    def moved() -> float:
        """Mean difference of a colour from the first sight."""
        return float(np.abs(seen(canvas) - before).mean())

    canvas.focus()
    page.keyboard.press("ArrowRight")
    turned = moved()
    assert turned > 1
    page.keyboard.press("+")
    assert moved() != turned
    page.get_by_role("button", name="Reset the view").click()
    assert moved() < 0.1
    page.get_by_role("button", name="Look from above").click()
    assert moved() > 1

    figure = reply["consistency"]
    said = page.locator("#consistency").inner_text()
    assert f"{figure['metres']:.2f} m and {figure['degrees']:.1f} degrees" in said
    facts = page.locator(".facts").inner_text()
    assert reply["model_version"] in facts and str(reply["tokens"]["prompt"]) in facts
    assert watched.said().startswith(f"Answer: {reply['answer']}")
    page.get_by_text("The model’s own words").click()
    assert page.locator(".details details[open] pre").inner_text() == reply["text"]


@in_browser
@pytest.mark.rest
def test_keyboard_alone_is_enough(watched):
    page = watched.page

    def tab_to(name: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if name in page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || ''"):
                return
        raise AssertionError(f"Tab never comes to {name!r}")

    tab_to("Find it again")
    page.keyboard.press("Enter")
    page.locator("#thumbs li").nth(1).wait_for()
    assert page.evaluate("document.activeElement.id") == "send"
    assert "Press Enter to ask" in watched.said()
    page.locator("#question").focus()
    tab_to("More")
    page.keyboard.press("Enter")
    for _ in range(4):
        page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.locator("#constrained").is_checked()
    tab_to("Ask")
    page.keyboard.press("Enter")
    page.locator("#answer").wait_for()
    assert watched.said().startswith("Answer: ")
    assert page.evaluate("document.activeElement.id") == "result"
    assert page.locator(".marked rect.truth").count() == (watched.reply()["value"] is not None)

    page.locator("#thumbs .tools button").nth(1).focus()
    page.keyboard.press("Enter")
    assert watched.said() == "Image 0 is now image 1."
    assert page.evaluate("document.activeElement.ariaLabel") == "Move image 1 to the front"
    assert page.locator("#thumbs img").first.get_attribute("alt") == "image 0: room-12-1.jpg"
    page.locator("#thumbs .remove").first.focus()
    page.keyboard.press("Enter")
    assert watched.said() == "Image 0 removed, 1 left."
    assert page.evaluate("document.activeElement.ariaLabel") == "Remove image 0"


@in_browser
@pytest.mark.rest
def test_errors_are_told_in_words(watched):
    page = watched.page
    ask = page.get_by_role("button", name="Ask", exact=True)
    alert = page.get_by_role("alert")
    ask.click()
    alert.get_by_text("There is no photo yet.").wait_for()
    watched.example(ROOM)
    page.locator("#files").set_input_files([{"name": "note.txt", "mimeType": "text/plain", "buffer": b"not an image"}])
    page.get_by_text("note.txt cannot be shown").wait_for()
    ask.click()
    alert.get_by_text("Image 2: the bytes are no image of a known format.").wait_for()
    assert "Send one of PNG, JPEG" in alert.inner_text()
    assert page.locator("#thumbs li.wrong").count() == 1
    page.get_by_role("button", name="Remove image 2").click()
    page.locator("#question").fill("One <|image_pad|> more?")
    ask.click()
    alert.get_by_text("<|image_pad|>").wait_for()
    assert page.evaluate("document.activeElement.id") == "question"
    watched.context.set_offline(True)
    ask.click()
    alert.get_by_text("The service does not answer.").wait_for()
    watched.context.set_offline(False)
    page.locator("#question").fill("Where is the sofa?")
    watched.ask()
    assert alert.count() == 0


@in_browser
@pytest.mark.rest
def test_a_narrow_screen_needs_no_sideways_scrolling(service, browser):
    watched = Watched(service, browser, viewport={"width": 360, "height": 740}, color_scheme="dark", has_touch=True)
    page = watched.page
    watched.example(ROOM)
    watched.ask()
    page.locator("canvas").wait_for()
    for summary in page.locator("#reply details > summary").all():
        summary.click()
    width = page.evaluate("document.documentElement.clientWidth")
    assert width <= 360
    assert page.evaluate("document.documentElement.scrollWidth") == width
    beyond = """[...document.querySelectorAll('main *')].filter((e) => e.checkVisibility() && !e.closest('.hidden')
        && e.getBoundingClientRect().right > document.body.clientWidth + 1).map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(beyond) == []
    small = """[...document.querySelectorAll('button, summary, .chips label')].filter((e) =>
        e.checkVisibility() && e.getBoundingClientRect().height < 24).map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(small) == []
    assert "light dark" in page.evaluate("getComputedStyle(document.documentElement).colorScheme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 21, 17)"
    watched.close()


@in_browser
@pytest.mark.rest
def test_without_webgl_the_cameras_are_drawn_flat_and_said_so(service, chromium):
    with chromium("--disable-3d-apis") as browser:
        watched = Watched(service, browser)
        watched.example(THREE)
        watched.ask()
        assert "cannot draw in 3D" in watched.page.locator("#flat").inner_text()
        assert watched.page.locator(".plan .seen").count() == 3
        assert "Image 1 was taken" in watched.page.locator("svg.plan").get_attribute("aria-label")
        watched.close()


@in_browser
@pytest.mark.rest
def test_everything_to_use_has_a_name_and_text_stands_out(watched):
    page = watched.page
    watched.example(ROOM)
    watched.ask()
    named = """[...document.querySelectorAll('button, input, textarea, canvas, summary, a, [tabindex], img, svg[role]')]
        .filter((e) => e.checkVisibility() && !e.closest('[aria-hidden=true]')).filter((e) => !(
          e.ariaLabel || e.innerText?.trim() || e.alt !== undefined && e.hasAttribute('alt') ||
          [...(e.labels ?? [])].some((label) => label.innerText.trim()))).map((e) => e.outerHTML.slice(0, 90))"""
    assert page.evaluate(named) == []
    headings = page.evaluate("""[...document.querySelectorAll('h1, h2, h3')]
        .filter((e) => e.checkVisibility()).map((e) => +e.tagName[1])""")
    assert headings[0] == 1
    assert all(below - above <= 1 for above, below in pairwise(headings))
    twice = """(ids => ids.filter((id, k) => ids.indexOf(id) !== k))(
        [...document.querySelectorAll('[id]')].map((e) => e.id))"""
    assert page.evaluate(twice) == []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        colour = page.evaluate("""() => {
          const style = getComputedStyle(document.documentElement)
          const names = ['ink', 'soft', 'paper', 'ground', 'good', 'bad', 'c0', 'c1', 'c2', 'c3', 'c4']
          return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]))
        }""")
        for ink in colour.keys() - {"paper", "ground"}:
            assert contrast(colour[ink], colour["paper"]) >= 4.5, (scheme, ink)
        assert min(contrast(colour[ink], colour["ground"]) for ink in ("ink", "soft")) >= 4.5


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two colours like #1f5fbf."""

    def luminance(colour: str) -> float:
        parts = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@in_browser
@pytest.mark.rest
def test_cameras_stand_where_the_poses_say(watched):
    rng = np.random.default_rng(0)
    true = [RigidTransform.identity()] + [
        RigidTransform.from_components(rng.normal(size=3), Rotation.random(rng=rng)) for _ in range(4)
    ]

    def pose(i: int, j: int) -> dict[str, Any]:
        return {"from": i, "to": j, "matrix": (true[i].inv() * true[j]).as_matrix().tolist()}

    placed = "async ([poses, count]) => (await import('/page/poses.js')).placed(poses, count)"
    for pairs in ([(0, 1), (0, 2), (0, 3), (0, 4)], [(3, 4), (2, 3), (1, 2), (0, 1)], [(1, 4), (0, 4)]):
        cameras = watched.page.evaluate(placed, [[pose(*pair) for pair in pairs], 5])
        assert [camera["index"] for camera in cameras] == sorted({0, *sum(pairs, ())})
        for camera in cameras:
            assert np.allclose(camera["matrix"], true[camera["index"]].as_matrix(), atol=1e-9)
    detours = "async (poses) => (await import('/page/poses.js')).detours(poses)"
    (detour,) = watched.page.evaluate(detours, [pose(0, 1), pose(1, 2), pose(0, 2)])
    assert (detour["index"], detour["over"]) == (2, 1)
    assert np.allclose(detour["matrix"], true[2].as_matrix(), atol=1e-9)


@in_browser
@pytest.mark.rest
def test_replies_in_words(watched):
    """Sentences for replies that a random model does not write."""
    words = "async ([name, ...given]) => (await import('/page/words.js'))[name](...given)"

    def said(name: str, *given: Any) -> Any:
        return watched.page.evaluate(words, [name, *given])

    ahead = np.eye(4)
    ahead[:3, 3] = [-0.3, 0.0, 1.2]
    assert said("whereabouts", ahead.tolist()) == "1.2 m ahead and 30 cm to the left, looking the same way"
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("y", 20, degrees=True).as_matrix()
    assert said("whereabouts", turned.tolist()) == "in the same place, looking 20° to the right"
    figure = {"triples": [{"views": [0, 1, 2], "metres": 0.21, "degrees": 3.4}], "metres": 0.21, "degrees": 3.4}
    told = said("consistency", figure)
    assert told["level"] == 1
    assert told["text"].startswith("The three steps disagree by 0.21 m and 3.4 degrees: going from image 0 to 1 and on")
    assert said("consistency", figure | {"metres": 2.5})["level"] == 3
    assert said("consistency", None) is None
    assert said("answerWords", {"answer": "B", "value": "B"}, "letter", ["left", "right"])["below"] == "right"
    assert said("answerWords", {"answer": None, "value": None}, "text", [])["large"] == "No answer"
    change = {"move_right": -0.4, "move_up": 0.0, "move_forward": 1.2, "rotate_up": 0.0, "rotate_right": 30.0}
    assert said("answerWords", {"answer": "...", "value": change}, "view_change", [])["large"] == (
        "40 cm left, 1.2 m forward and turn right 30°"
    )
    drawn = """async () => {
        const { resultOf } = await import('/page/result.js')
        const tokens = { prompt: 1, images: 1, reply: 1 }
        const figures = { tokens, seconds: { total: 1 }, model_version: 'm', text: '' }
        const votes = { samples: 5, counts: { '[1,2,3,4]': 4.1, '[9,9,9,9]': 0.9 }, agreement: 0.82, spread: null }
        const reply = { ...figures, answer: '[100,200,300,600]', value: [100, 200, 300, 600], actions: [], poses: [],
          problems: ['missing_pair'], consistency: null, votes }
        const images = [0, 1].map((k) => ({ url: `/page/examples/room-12-${k}.jpg`, name: `${k}.jpg` }))
        const body = { question: 'Its box in image 1?', answer_form: 'box', options: [], images: [] }
        const [box] = await resultOf(reply, { body, images, example: null })
        const rect = box.querySelector('rect.said')
        const sides = ['x', 'y', 'width', 'height'].map((name) => +rect.getAttribute(name))
        return [box.querySelector('img').alt, sides, box.innerText]
    }"""
    alternative, rectangle, text = watched.page.evaluate(drawn)
    assert "image 1" in alternative
    assert rectangle == [100, 200, 200, 400]
    assert "82 % of the votes of 5 samples agree" in text
    assert "a pair of photos is missing" in text
    copies = """async (given) => {
        const { asCurl, asPython } = await import('/page/copies.js')
        return [asCurl(...given), asPython(...given)]
    }"""
    body = {"images": [], "question": 'What\'s "left"?', "answer_form": "letter", "options": ["a b", "c"], "seed": None}
    curl, python = watched.page.evaluate(copies, ["http://h:1", ["a b.jpg"], body])
    assert "-F 'question=What'\\''s \"left\"?'" in curl and curl.count("-F 'options=") == 2 and "seed" not in curl
    compile(python, "copy", "exec")


@in_browser
@pytest.mark.rest
def test_a_long_request_shows_progress_and_can_be_cancelled(watched):
    page = watched.page
    watched.example(THREE)
    page.locator("#samples").fill("16")
    page.locator("#samples").dispatch_event("change")
    assert page.locator("#temperature").input_value() == "0.8"
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#growing:not(:empty)").wait_for()
    assert re.fullmatch(r"\d+\.\d s", page.locator("#elapsed").inner_text())
    assert "samples" in page.locator("#stage").inner_text()
    page.get_by_role("button", name="Cancel").click()
    page.locator("#intro").wait_for()
    assert watched.said() == "Cancelled."
    assert page.evaluate("document.activeElement.id") == "send"


@in_browser
@pytest.mark.rest
def test_matches_are_drawn_as_lines_between_the_photos(service, browser):
    """The page of a run of matching. The photos are marked and the reply is read by the service's own code; only what
    the model says is given here, since no test has one that matches.
    """
    from serve.match import mark, read
    from serve.reply import Written
    from serve.stream import reason_event

    health = httpx.get(f"{service}/healthz").json() | {"matches": True}
    sent: list[dict[str, Any]] = []

    def answer(route: Any) -> None:
        sent.append(route.request.post_data_json)
        first, second = (mark(text, index, None, 224 * 224).points for index, text in enumerate(sent[-1]["images"]))
        text = '<answer>{"1":"3","2":"none","3":"1","4":"99"}</answer>'
        reply = read(Written([text], [20], ["stop"], 90, 32), first, second, False, "v")
        route.fulfill(body=reason_event(reply), content_type="text/event-stream")

    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.route("**/healthz", lambda route: route.fulfill(json=health))
    page.route("**/match", answer)
    page.goto(service)
    page.locator("body.matching").wait_for()
    assert not page.locator("#question").is_visible() and not page.locator("#examples").is_visible()
    page.locator("#files").set_input_files(sorted((FOLDER / "examples").glob("*.jpg"))[:3])
    page.get_by_text("1 left out: this service takes at most 2 photos.").wait_for()
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator(".matched").wait_for()
    assert set(sent[0]) == {"images", "temperature", "seed", "stream"} and len(sent[0]["images"]) == 2
    drawn = page.locator(".matched")
    assert drawn.locator("line").count() == 2 and drawn.locator("image").count() == 2
    assert drawn.get_attribute("aria-label") == "Points of image 0 and of image 1: 1 is 3, 3 is 1"
    reply = json.loads(page.locator(".details pre").nth(1).text_content())
    marks = len(reply["first"]) + len(reply["second"])
    assert drawn.locator("circle").count() == drawn.locator("text").count() == marks
    assert page.locator("#answer").inner_text() == f"2 of {len(reply['first'])} points matched"
    assert (
        "no partner: 2" in page.locator(".below").inner_text() and "with care" in page.locator(".faults").inner_text()
    )
    line, (x, y) = drawn.locator("line").first, reply["first"][0]
    assert [float(line.get_attribute(name)) for name in ("x1", "y1")] == pytest.approx([x + 0.5, y + 0.5])
    page.close()
    assert complaints == []
