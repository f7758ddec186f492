"""The page at /, in a real browser that asks a real server in this process."""

import base64
import io
import json
import os
import re
from contextlib import suppress

import browser
import numpy as np
import pytest
from PIL import Image
from serving_samples import picture, running

from conformer_fast import explain, load_batch
from conformer_fast.serving.page import FILE, page
from conformer_fast.serving.reading import Limits

pytestmark = pytest.mark.slow

COUNTED = """
let now = 0, ask = window.fetch;
window.most = 0;
window.fetch = async (...request) => {
  window.most = Math.max(window.most, ++now);
  try { return await ask(...request); } finally { now--; }
};
"""
CONTRASTS = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = numbers(color).map((part) => linear(part / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if ((numbers(color)[3] ?? 1) === 1) return color;
    }
  };
  const texts = [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility() &&
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return texts.map((element) => {
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x);
    return [element.textContent.trim(), (a + 0.05) / (b + 0.05)];
  });
}"""
SIZES = """() => [...document.querySelectorAll("a, button, select, input")]
  .filter((element) => element.checkVisibility())
  .map((element) => [element.outerHTML.slice(0, 60), element.getBoundingClientRect().width,
                     element.getBoundingClientRect().height])"""
CONTROLS = {
    "button",
    "link",
    "textbox",
    "combobox",
    "slider",
    "radio",
    "image",
    "region",
    "group",
    "navigation",
    "dialog",
}


@pytest.fixture(scope="module")
def client(model):
    with running(model, max_batch=4) as client:
        yield client


@pytest.fixture(scope="module")
def chromium():
    reason = browser.missing()
    if reason:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with browser.launched() as launched:
        yield launched


def hill(rows, columns, row, column):
    """A heat map that is highest in one cell."""
    return [[-((y - row) ** 2) - (x - column) ** 2 for x in range(columns)] for y in range(rows)]


def heat(route):
    index = int(route.request.url.rpartition("class=")[2])
    maps = {"conv": hill(7, 7, 0, 0), "trans": hill(4, 4, 3, 3)}
    crop = {"left": 0.25, "top": 0, "width": 0.5, "height": 1.0}
    route.fulfill(json={"engine": "x", "class": {"index": index, "label": str(index)}, "crop": crop, "maps": maps})


def refused(route, status=400, sentence="this bundle has no weights, which a heat map needs"):
    route.fulfill(status=status, json={"error": sentence})


@pytest.fixture
def visit(chromium, client):
    """Opens the page. At the end nothing may have been asked elsewhere, blocked, or wrong in its script."""
    contexts, wrong = [], []

    def opened(at=client, explain=heat, script="", **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        address = f"http://127.0.0.1:{at.port}/"
        found = context.new_page()
        found.set_default_timeout(20_000)
        found.add_init_script(COUNTED + script)
        found.on(
            "request", lambda request: request.url.startswith((address, "blob:", "data:")) or wrong.append(request.url)
        )
        found.on("pageerror", lambda error: wrong.append(str(error)))
        found.on("console", lambda message: message.type != "error" or refusal(message) or wrong.append(message.text))
        found.route("**/v1/explain?*", explain)
        found.goto(address)
        return found

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def refusal(message):
    """What the browser itself says of each status of 400 and above."""
    return message.text.startswith("Failed to load resource")


def file(name="picture.png", data=None, kind="image/png"):
    return {"name": name, "mimeType": kind, "buffer": picture() if data is None else data}


def choose(page, *files):
    """Chooses files, and waits until each has its result."""
    page.locator("#files").set_input_files(list(files))
    finished(page)


def finished(page):
    """Waits until no card is busy: by locators, as the page's policy forbids functions that are made of text."""
    page.locator(".card").first.wait_for()
    from playwright.sync_api import expect

    expect(page.locator(".card[aria-busy=true]")).to_have_count(0, timeout=20_000)


def explained(page):
    """Waits for the heat map of the first card, and gives its canvas."""
    page.locator(".controls").first.wait_for()
    return page.locator("canvas").first


def drawn(canvas):
    """Its pixels: (height, width, 4)."""
    _, _, text = canvas.evaluate("canvas => canvas.toDataURL()").partition(",")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGBA"))


def test_its_headers_let_it_load_nothing(client):
    status, headers, body = client.get("/")
    text, expected = page()
    assert (status, body.decode()) == (200, text)
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert {name: headers[name.lower()] for name in expected} == expected
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    for rule in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy[rule])


def test_the_file_names_no_other_address():
    text = FILE.read_text(encoding="utf-8").replace(
        "http://www.w3.org/2000/svg", ""
    )  # which says what kind of file it is
    assert "//" not in re.sub(r" // .*|^// .*", "", text, flags=re.MULTILINE)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|url\(|@import|Storage|cookie", text)


def test_a_picture_gets_its_classes_and_times(visit, model, tmp_path):
    data = picture(3)
    (tmp_path / "picture").write_bytes(data)
    (expected,) = model.predict([tmp_path / "picture"], topk=5).pictures
    page = visit()
    choose(page, file(data=data))
    lists = page.locator(".bars ol").all()
    assert page.locator(".bars h4").all_inner_texts() == ["Both branches", "Convolution branch", "Transformer branch"]
    rows = [row.all_inner_texts() for row in (item.locator("span") for item in lists[0].locator("li").all())]
    assert rows == [[guess.label, f"{100 * guess.probability:.1f}%"] for guess in expected.top]
    assert [item.locator("li").count() for item in lists] == [5, 5, 5]
    filled = lists[0].locator("b").first.evaluate("bar => bar.offsetWidth / bar.parentElement.offsetWidth")
    assert filled == pytest.approx(expected.top[0].probability, abs=0.02)
    assert page.locator("dt").all_inner_texts() == ["Decode", "Queue", "Engine", "Total, seen from here"]
    *stages, total = [float(text.removesuffix(" ms")) for text in page.locator("dd").all_inner_texts()]
    assert 0 < sum(stages) < total
    assert page.locator("img").get_attribute("alt") == "The picture picture.png"
    assert page.locator("#status").inner_text() == "1 of 1 picture done"


def test_whether_the_branches_agree_is_said(visit):
    page = visit()
    guesses = [{"index": index, "label": f"label {index}", "probability": 0.5} for index in range(2)]
    found = {"top": guesses, "heads": {"conv": guesses, "trans": guesses[::-1]}, "batch": 1}
    found["milliseconds"] = {"decode": 1, "queue": 1, "engine": 1}
    page.route("**/v1/predict?*", lambda route: route.fulfill(json={"predictions": [found]}))
    choose(page, file())
    assert page.locator(".agree").inner_text() == "The branches differ: label 0 by convolution, label 1 by transformer."
    found["heads"]["trans"] = guesses
    choose(page, file())
    assert page.locator(".agree").first.inner_text() == "Both branches agree."


def test_a_wrong_file_costs_only_itself(visit):
    page = visit()
    choose(page, file("a.png"), file("b.png", b"no picture"), file("c.png"))
    cards = page.locator(".card").all()
    assert [card.locator(".name").inner_text() for card in cards] == ["a.png", "b.png", "c.png"]
    assert [card.locator("h4").count() for card in cards] == [3, 0, 3]
    assert "not an image" in cards[1].locator(".result .notice").inner_text()
    assert not cards[1].locator("button").first.is_visible()
    assert page.locator("#status").inner_text() == "3 of 3 pictures done, 1 without a result"


def test_twenty_pictures_are_asked_for_four_at_a_time(visit):
    page = visit()
    choose(page, *[file(f"{index}.png", picture(index)) for index in range(20)])
    assert page.locator("#status").inner_text() == "20 of 20 pictures done"
    assert page.locator(".name").all_inner_texts() == [f"{index}.png" for index in range(20)]
    assert page.evaluate("most") == 4
    asked = page.evaluate(
        "performance.getEntriesByType('resource').filter(({ name }) => name.includes('explain')).length"
    )
    assert asked < 8  # heat maps of what is seen alone


def test_a_full_server_is_asked_again(visit):
    page = visit()
    answers = [lambda route: route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": "full"})] * 2
    page.route("**/v1/predict?*", lambda route: answers.pop()(route) if answers else route.continue_())
    choose(page, file())
    assert answers == []
    assert page.locator("h4").count() == 3


def test_a_server_that_stays_full_is_said_and_may_be_asked_again(visit):
    page = visit(script="const wait = setTimeout; window.setTimeout = (work) => wait(work, 1);")
    asked = []
    page.route("**/v1/predict?*", lambda route: (asked.append(1), refused(route, 503, "256 may be in the server")))
    choose(page, file())
    assert len(asked) == 6
    assert "256 may be" in page.locator(".result .notice").inner_text()
    page.unroute("**/v1/predict?*")
    page.get_by_role("button", name="Retry").click()
    page.locator("h4").first.wait_for()


def test_a_server_that_is_gone_is_said_and_retry_asks_for_all(visit, model):
    with running(model, max_batch=1) as client:
        page = visit(client)
    choose(page, file("a.png"), file("b.png"))
    assert "does not answer" in page.locator(".result .notice").first.inner_text()
    held = []
    page.route("**/v1/predict?*", lambda route: held.append(route))
    page.get_by_role("button", name="Retry").first.click()
    page.get_by_text("Classifying").nth(1).wait_for()
    assert page.evaluate("document.activeElement.id") == "title"  # the button went away
    for route in held:
        refused(route)
    page.get_by_text("no weights").nth(1).wait_for()


def test_a_file_beyond_the_servers_limit(visit, model):
    with running(model, max_batch=1, limits=Limits(bytes=1000)) as client:
        page = visit(client)
        choose(page, file(data=bytes(4_000_000)))
        assert re.search("over 1,000 bytes|as large as this", page.locator(".result .notice").inner_text())


def test_a_picture_that_the_browser_cannot_show(visit):
    data = io.BytesIO()
    Image.new("RGB", (50, 40)).save(data, "TIFF")
    page = visit()
    choose(page, file("scan.tiff", data.getvalue(), "image/tiff"))
    assert page.locator("h4").count() == 3
    assert page.get_by_text("cannot show the picture").is_visible()
    assert not page.locator("img").is_visible()
    assert not page.locator(".heat").is_visible()


def test_a_large_picture_is_shown_small(visit):
    data = io.BytesIO()
    Image.new("RGB", (6000, 3000), "green").save(data, "JPEG")
    page = visit()
    choose(page, file("large.jpg", data.getvalue(), "image/jpeg"))
    box = page.locator("img").bounding_box()
    assert box["width"] <= 352
    assert box["width"] == pytest.approx(2 * box["height"], abs=1)
    height, width, _ = drawn(explained(page)).shape
    assert (width, height) == (640, 320)


def test_names_stay_text(visit):
    name = "<img src=x onerror=alert(1)>&amp;<b>.png"
    page = visit(explain=lambda route: refused(route, sentence="<b>no</b>"))
    page.route("**/v1/predict?*", lambda route: refused(route, sentence=name))
    choose(page, file(name))
    assert page.locator(".name").inner_text() == name
    assert page.locator(".result .notice p").inner_text() == name
    page.unroute("**/v1/predict?*")
    choose(page, file(name))
    page.get_by_text("<b>no</b>").wait_for()


def transfer(page, event, kind, files):
    """Dispatches an event with such files on the page's body."""
    page.evaluate(
        """async ([event, kind, files]) => {
          const transfer = new DataTransfer();
          for (const [name, text] of files) {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt());
            transfer.items.add(new File([bytes], name, { type: "image/png" }));
          }
          const key = event === "paste" ? "clipboardData" : "dataTransfer";
          document.body.dispatchEvent(new window[kind](event, { [key]: transfer, bubbles: true, cancelable: true }));
        }""",
        [event, kind, [[name, base64.b64encode(data).decode()] for name, data in files]],
    )


@pytest.mark.parametrize(("event", "kind"), [("drop", "DragEvent"), ("paste", "ClipboardEvent")])
def test_pictures_are_dropped_and_pasted(event, kind, visit):
    page = visit()
    transfer(page, event, kind, [("one.png", picture(1)), ("two.png", picture(2))])
    finished(page)
    assert page.locator(".name").all_inner_texts() == ["one.png", "two.png"]
    assert page.locator("h4").count() == 6
    transfer(page, event, kind, [])
    assert page.get_by_role("alert").inner_text() == "There is no picture in this."


def test_where_a_picture_may_be_dropped_is_shown(visit):
    page = visit()
    before = page.locator("#picker").evaluate("box => getComputedStyle(box).borderColor")
    transfer(page, "dragover", "DragEvent", [])
    assert page.locator("#picker").evaluate("box => getComputedStyle(box).borderColor") != before
    transfer(page, "dragleave", "DragEvent", [])
    assert page.locator("#picker").evaluate("box => getComputedStyle(box).borderColor") == before


def chooser_by(page, key):
    """The dialog for files that a key opens. A busy machine's Chromium was seen to lose one."""
    from playwright.sync_api import TimeoutError

    for _ in range(2):
        with suppress(TimeoutError):
            with page.expect_file_chooser(timeout=5000) as chooser:
                page.keyboard.press(key)
            return chooser.value
    with page.expect_file_chooser() as chooser:
        page.keyboard.press(key)
    return chooser.value


def test_by_keyboard_alone(visit):
    page = visit()
    seen = []

    def tab():
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        seen_one = "e => getComputedStyle(getComputedStyle(e).opacity === '0' ? e.nextElementSibling : e).outlineStyle"
        assert focused.evaluate(seen_one) == "solid"  # on it, or on what stands for it
        seen.append(focused.evaluate("e => e.id || e.value || e.textContent"))

    for _ in range(3):
        tab()
    chooser_by(page, "Space").set_files([file()])
    finished(page)
    assert page.evaluate("document.activeElement.id") == "title"
    canvas = explained(page)
    first = drawn(canvas)
    tab()
    tab()
    page.keyboard.press("ArrowRight")
    assert page.locator("[value=trans]").is_checked()
    assert (drawn(canvas) != first).any()
    tab()
    with page.expect_response("**/v1/explain?*"):
        page.keyboard.press("ArrowDown")
    explained(page)
    tab()
    page.keyboard.press("Home")
    assert not drawn(canvas).any()
    assert seen[:5] == ["API", "Metrics", "files", "clear", "conv"]


def test_the_focus_stays_where_somebody_works(visit):
    page = visit()
    choose(page, file())
    explained(page)
    page.locator("[type=range]").focus()
    choose(page, file())
    assert page.evaluate("document.activeElement.type") == "range"


def test_a_heat_map_of_each_branch(visit):
    page = visit()
    choose(page, file(data=picture(side=300)))
    canvas = explained(page)
    conv = drawn(canvas)
    assert conv.shape == (640, 640, 4)
    page.get_by_label("Transformer").check()
    trans = drawn(canvas)
    assert (conv != trans).any()
    for pixels, (y, x) in ((conv, (10, 180)), (trans, (630, 460))):  # where each is highest
        red, green, blue, alpha = pixels[y, x]
        assert red > 200
        assert green > 200
        assert blue < 80
        assert alpha == pytest.approx(0.6 * 255, abs=2)
    assert trans[10, 180, 0] < 90  # and lowest
    for pixels in (conv, trans):
        assert (pixels[:, :158, :3] == 0).all()  # outside of what the model saw
        assert (pixels[:, 482:, 3] > 140).all()
    steps = np.abs(np.diff(conv[320, 165:475].astype(int), axis=0)).max()
    assert steps < 12  # smooth, where the map has seven columns
    assert canvas.get_attribute("role") == "img"
    assert "transformer branch" in canvas.get_attribute("aria-label")
    assert page.get_by_text("The brighter").is_visible()


def test_the_heat_maps_strength(visit):
    page = visit()
    choose(page, file())
    canvas = explained(page)
    for strength in (100, 30, 0):
        page.locator("[type=range]").fill(str(strength))
        pixels = drawn(canvas)
        assert pixels[320, 320, 3] == pytest.approx(2.55 * strength, abs=1)
    assert not pixels.any()


def test_a_heat_map_of_another_class(visit):
    page = visit()
    choose(page, file())
    canvas = explained(page)
    options = page.locator("option").all_inner_texts()
    listed = set(page.locator(".bars li span:first-child").all_inner_texts())
    assert set(options) == listed
    assert len(options) == len(listed)
    with page.expect_response("**/v1/explain?*") as answer:
        page.locator("select").select_option(options[3])
    assert answer.value.json()["class"]["label"] == options[3]
    page.locator(f"canvas[aria-label$='class {options[3]}']").wait_for()
    asked = page.evaluate("performance.getEntriesByType('resource').length")
    page.locator("select").select_option(options[0])
    page.locator(f"canvas[aria-label$='class {options[0]}']").wait_for()
    assert page.evaluate("performance.getEntriesByType('resource').length") == asked  # that one is known
    assert canvas.is_visible()


@pytest.mark.parametrize("status", [400, 501])
def test_a_server_without_heat_maps_says_so(status, visit):
    page = visit(explain=lambda route: refused(route, status))
    choose(page, file("a.png"), file("b.png"))
    page.get_by_text("this bundle has no weights").first.wait_for()
    assert not page.locator(".controls").first.is_visible()
    assert not page.locator("canvas").first.is_visible()
    assert page.locator(".bars h4").count() == 6


def test_the_servers_own_heat_maps(visit, model, tmp_path):
    page = visit(explain=lambda route: route.continue_())
    data = picture(3, side=100)
    with page.expect_response("**/v1/explain?*") as answer:
        choose(page, file(data=data))
    canvas = explained(page)
    (tmp_path / "picture").write_bytes(data)
    index = answer.value.json()["class"]["index"]
    found = explain(model, load_batch([tmp_path / "picture"], model.side), index)
    place = divmod(int(found.trans[0].argmax()), found.trans.shape[-1])
    page.locator("[value=trans]").check()
    crop, pixels = answer.value.json()["crop"], drawn(canvas)[:, :, :3].astype(int)
    centers = [
        (crop[edge] + crop[length] * (at + 0.5) / found.trans.shape[-1]) * full
        for edge, length, at, full in zip(("top", "left"), ("height", "width"), place, pixels.shape, strict=False)
    ]
    assert "whatever the class" in page.locator(".legend").inner_text()
    brightest = pixels[round(centers[0]), round(centers[1])]
    assert brightest.sum() > 0.98 * pixels.sum(2).max()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_a_camera_stored_turned(orientation, visit):
    """The server gets it upright, and the page shows what the server got."""
    upright = Image.new("RGB", (60, 40), "blue")
    upright.paste("red", (0, 0, 30, 20))
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # of Transpose, that undo what the tag says
    stored = upright.transpose(Image.Transpose(turns[orientation])) if orientation > 1 else upright
    exif, written = Image.Exif(), io.BytesIO()
    exif.endian = "<" if orientation in (2, 6, 7) else ">"
    exif[0x010F], exif[0x0112] = "a camera", orientation
    stored.save(written, "JPEG", exif=exif, quality=95)
    page = visit()
    with page.expect_request("**/v1/predict?*") as asked:
        choose(page, file("x.jpg", written.getvalue(), "image/jpeg"))
    sent = Image.open(io.BytesIO(asked.value.post_data_buffer))
    assert (sent.size, sent.getexif().get(0x0112, 1)) == ((60, 40), 1)
    red, blue = np.asarray(sent)[10, 15], np.asarray(sent)[30, 45]
    assert red[0] > 200 > 60 > red[2]
    assert blue[2] > 200 > 60 > blue[0]
    image = page.locator(".frame img")
    assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [60, 40]
    assert ("turned upright" in page.locator(".name").inner_text()) == (orientation > 1)


def test_a_heat_map_of_one_branch(visit):
    def one(route):
        crop = {"left": 0, "top": 0, "width": 1, "height": 1}
        route.fulfill(json={"class": {"index": 1, "label": "1"}, "crop": crop, "maps": {"trans": [[5, 5], [5, 5]]}})

    page = visit(explain=one)
    choose(page, file())
    canvas = explained(page)
    assert not page.get_by_text("Convolution", exact=True).is_visible()
    assert page.locator("[value=trans]").is_checked()
    assert len(np.unique(drawn(canvas).reshape(-1, 4), axis=0)) == 1  # all the same


def test_a_token_is_asked_for_when_the_server_wants_one(visit, model):
    with running(model, max_batch=1, token="secret é") as client:
        page = visit(client)
        assert not page.locator("#token").is_visible()
        page.locator("#files").set_input_files([file(f"{index}.png") for index in range(6)])
        page.locator("#token").wait_for()
        assert page.evaluate("document.activeElement.id") == "secret"
        page.keyboard.type("other")
        page.keyboard.press("Enter")
        page.get_by_text("did not take").wait_for()
        assert page.locator("#secret").input_value() == ""
        page.locator("#secret").fill("secret é")
        page.keyboard.press("Enter")
        finished(page)
        assert page.locator("#status").inner_text() == "6 of 6 pictures done"
        assert not page.locator("#token").is_visible()
        assert not page.locator("nav").is_visible()  # whose links send none
        choose(page, file("7.png"))
        assert page.locator("#status").inner_text() == "7 of 7 pictures done"
        assert page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]


def test_a_picture_of_the_camera(visit):
    page = visit(permissions=["camera"])
    page.get_by_role("button", name="Use the camera").click()
    page.get_by_role("button", name="Take the picture").click()
    finished(page)
    assert page.locator(".name").inner_text() == "Camera picture"
    assert page.locator("h4").count() == 3
    assert not page.locator("dialog").is_visible()
    assert page.locator("video").evaluate("video => video.srcObject.active") is False


def test_a_camera_that_is_forbidden_or_not_there(visit):
    page = visit()
    page.get_by_role("button", name="Use the camera").click()
    assert page.get_by_role("alert").inner_text().startswith("The browser may not use the camera")
    page = visit(script="navigator.mediaDevices.enumerateDevices = async () => [];")
    assert not page.locator("#camera").is_visible()
    assert not page.locator("#capture").is_visible()
    page = visit(has_touch=True, is_mobile=True)
    assert page.get_by_text("Take a picture").is_visible()
    assert page.locator("#capture input").get_attribute("capture") == "environment"
    assert not page.locator("#camera").is_visible()


def test_clear_leaves_nothing(visit):
    page = visit()
    choose(page, file(), file())
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".card").count() == 0
    assert not page.locator("#results").is_visible()
    assert page.evaluate("document.activeElement.id") == "files"
    choose(page, file())
    assert page.locator("#status").inner_text() == "1 of 1 picture done"


def everything(page):
    """A page with results, an error, a heat map and the form for the token."""
    page.route(
        "**/v1/predict?*",
        lambda route: refused(route, 503) if b"gone" in route.request.post_data_buffer else route.continue_(),
    )
    choose(page, file("a.png"), file("wrong.png", b"wrong"), file("c" * 100 + ".png", picture(2)))
    explained(page)
    page.evaluate("byId('token').hidden = false; byId('refused').textContent = 'Refused.'; tell('A sentence.')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_have_the_contrast_of_aa(scheme, visit):
    page = visit(color_scheme=scheme)
    everything(page)
    found = page.evaluate(CONTRASTS)
    assert len(found) > 60
    assert [(text, ratio) for text, ratio in found if ratio < 4.5] == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 20, 24)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_fits_every_width_and_finger(width, visit):
    page = visit(viewport={"width": width, "height": 700}, has_touch=width < 700, is_mobile=width < 700)
    everything(page)
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    sizes = page.evaluate(SIZES)
    assert len(sizes) > 10
    assert [found for found in sizes if min(found[1:]) < 44] == []


def test_every_control_has_a_name(visit):
    page = visit(permissions=["camera"])
    everything(page)
    session = page.context.new_cdp_session(page)
    names = []
    for dialog in (False, True):
        if dialog:
            page.get_by_role("button", name="Use the camera").click()
            page.locator("dialog").wait_for()
        tree = session.send("Accessibility.getFullAXTree")["nodes"]
        nodes = [node for node in tree if not node["ignored"] and node["role"]["value"].lower() in CONTROLS]
        names += [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]
    assert [role for role, name in names if not name.strip()] == []
    for expected in (
        "Choose pictures",
        "Use the camera",
        "Convolution",
        "Strength",
        "for the class",
        "This server asks",
    ):
        assert any(name.startswith(expected) for _, name in names), (expected, names)
    assert any(name == "The picture a.png" for _, name in names)
    assert any(name.startswith("Heat map of the convolution branch") for _, name in names)


def test_nothing_moves_for_who_wants_no_motion(visit):
    for motion, moves in (("reduce", False), ("no-preference", True)):
        page = visit(reduced_motion=motion)
        page.route("**/v1/predict?*", lambda route: None)  # never answered
        page.locator("#files").set_input_files([file()])
        page.get_by_text("Classifying").wait_for()
        assert page.evaluate("document.getAnimations().length > 0") is moves
        page.locator("#clear").click()


def test_a_wrong_answer_is_no_end(visit):
    page = visit()
    page.route("**/v1/predict?*", lambda route: route.fulfill(body="<html>a proxy</html>"))
    choose(page, file())
    assert "cannot be read" in page.locator(".result .notice").inner_text()
    page.unroute("**/v1/predict?*")
    page.route("**/v1/predict?*", lambda route: route.fulfill(status=502, body=json.dumps([1])))
    choose(page, file())
    assert "status 502" in page.locator(".result .notice").first.inner_text()
