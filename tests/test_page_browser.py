"""The page in a real browser: opened from the disk, used with mouse and keyboard, at the widths of phone and desk."""

import os
import shutil

import pytest
from made_run import corpus_of, data_of, make_run
from playwright.sync_api import sync_playwright

import compare
from experiment.insight import gather
from experiment.page import write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not os.environ.get("BROWSER_TESTS"):  # as CI says it
    pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
HOSTILE = [
    "<script>window.harmed = 1</script>",
    "</script><script>window.harmed = 1</script>",
    "javascript:window.harmed=1",
    "\u202egnihtyreve snrut\u2066",
    "<img src=https://example.org/x.png onerror='window.harmed=1'>",
    "long " * 2000,
]
IEMOCAP = ("happy", "sad", "neutral", "angry", "excited", "frustrated")


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser):
    """Opens a page; at the end nothing was asked of a network, and nothing was complained of."""
    contexts, asked, complaints = [], [], []

    def open_page(path, width=1440, **about):
        size = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, reduced_motion="reduce", **about)
        contexts.append(context)
        shown = context.new_page()
        shown.on("request", lambda request: asked.append(request.url))
        shown.on("console", lambda said: complaints.append(said.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.goto(path.as_uri())
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert all(url.startswith("file:") for url in asked) and len(asked) == len(contexts)
    assert complaints == []


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    sentences = [*HOSTILE, *(f"word{i} and more" for i in range(31))]
    people = ("Ann", "Bob", "Cy")
    corpus = corpus_of([9, 40, 8], IEMOCAP, sentences=sentences, speakers=people)
    network, dialogues = make_run(folder / "run", corpus)
    return write_page(folder / "run", seen=gather(folder / "run", network=network, dialogues=dialogues))


def turns(shown):
    return shown.locator("#chat li.turn").evaluate_all("all => all.map(e => Number(e.id.slice(1)))")


def test_iemocaps_shape_opens(tmp_path, opened):
    lengths = [52] * 22 + [53] * 8 + [55]
    sentences = ["What a sentence of the usual length may well be like, I should say, in a play."]
    network, dialogues = make_run(tmp_path / "run", corpus_of(lengths, IEMOCAP, sentences=sentences))
    seen = gather(tmp_path / "run", network=network, dialogues=dialogues, maps=False)
    made = write_page(tmp_path / "run", seen=seen)
    assert made.stat().st_size < 2e6
    shown = opened(made)
    assert shown.locator("#chat li.turn").count() == 52
    shown.locator("#dialogue").select_option("30")
    assert len(turns(shown)) == 55


def test_every_filter_shows_what_it_says(report, opened):
    shown, data = opened(report), data_of(report)
    every = range(len(data["d"]))
    assert turns(shown) == [i for i in every if data["d"][i] == 0]
    shown.locator("#after").click()
    assert turns(shown) == [i for i in every if data["d"][i] == 1]
    shown.locator("#before").click()
    shown.locator("#scope").select_option("all")
    assert turns(shown) == list(every)
    wrong = [i for i in every if data["label"][i] != data["predicted"][i]]
    shown.locator("#show").select_option("wrong")
    assert turns(shown) == wrong
    assert f"{len(wrong)} utterances in all dialogues" in shown.locator("#count").inner_text()
    shown.locator("#show").select_option("right")
    assert turns(shown) == [i for i in every if i not in wrong]
    shown.locator("#show").select_option("all")
    for name, column in (("#true", "label"), ("#said", "predicted"), ("#speaker", "speaker")):
        shown.locator(name).select_option("1")
        assert turns(shown) == [i for i in every if data[column][i] == 1]
        shown.locator(name).select_option("")
    shown.locator("#low").fill("30")
    assert turns(shown) == [i for i in every if data["confidence"][i] >= 300]
    shown.locator("#high").fill("40")
    assert turns(shown) == [i for i in every if 300 <= data["confidence"][i] <= 400]
    shown.locator("#low").fill("")
    shown.locator("#high").fill("")
    shown.locator("#words").fill("WORD2")
    assert turns(shown) == [i for i in every if "word2" in data["text"][i]]
    shown.locator("#reset").click()
    assert turns(shown) == [i for i in every if data["d"][i] == 0]


def test_a_cell_of_the_matrix_lists_its_utterances(report, opened):
    shown, data = opened(report), data_of(report)
    for cell in shown.locator(".matrix button").all()[:12]:
        true, said = int(cell.get_attribute("data-true")), int(cell.get_attribute("data-said"))
        cell.click()
        pairs = zip(data["label"], data["predicted"], strict=True)
        assert turns(shown) == [i for i, pair in enumerate(pairs) if pair == (true, said)]
        assert cell.get_attribute("aria-pressed") == "true"


def test_a_name_too_long_for_a_column_of_the_matrix_ends_in_dots(tmp_path, opened):
    network, dialogues = make_run(tmp_path / "run", corpus_of([20], ("n" * 40, *(f"class {i}" for i in range(9)))))
    seen = gather(tmp_path / "run", network=network, dialogues=dialogues, maps=False)
    name = opened(write_page(tmp_path / "run", seen=seen)).locator(".matrix thead th.turn").first
    assert name.evaluate("n => n.scrollHeight > n.clientHeight && getComputedStyle(n).textOverflow") == "ellipsis"


def test_speakers_are_left_and_right_by_their_first_turn(report, opened):
    shown = opened(report)
    sides = ["left" in turn.get_attribute("class").split() for turn in shown.locator("#chat li").all()]
    assert sides == [True, False, True] * 3  # Ann, Bob, Cy


def test_the_strip_has_a_row_for_each_class_that_occurs(tmp_path, opened):
    """Of more classes than have a colour each, those of the dialogue, so that none is told by colour alone."""
    names = tuple(f"class {i:02d}" for i in range(40))
    make_run(tmp_path / "run", corpus_of([6, 60], names))
    made = write_page(tmp_path / "run", seen=gather(tmp_path / "run", maps=False))
    shown, data = opened(made), data_of(made)
    there = sorted({*data["label"][:6], *data["predicted"][:6]})
    assert shown.locator("#strip text").all_text_contents() == [*(names[k] for k in there), "wrong"]
    shown.locator("#dialogue").select_option("1")
    assert shown.locator("#strip text").all_text_contents() == ["true", "predicted", "wrong"]


def test_what_decided_leads_to_the_neighbour(report, opened):
    shown, data = opened(report), data_of(report)
    shown.locator("#u3 summary").click()
    shown.locator("#u3 details", has_text="without the edge from").wait_for()  # it is filled when it opens
    said = shown.locator("#u3 details").inner_text()
    assert all(word in said for word in ("text", "visual", "acoustic", "without the edge from", *IEMOCAP))
    offset = data["neighbours"][3][0][0]
    shown.locator("#u3 details button").first.click()
    assert shown.evaluate("document.activeElement.id") == f"u{3 + offset}"
    for i, bar in enumerate(shown.locator("#u3 .bar.mid i").all()[:3]):
        change = list(data["modalities"].values())[i][3]
        assert ("left:50%" in bar.get_attribute("style")) == (change >= 0)


def test_the_keyboard_alone_is_enough(report, opened):
    shown = opened(report)
    reached = set()
    for _ in range(120):
        shown.keyboard.press("Tab")
        reached.add(shown.evaluate("document.activeElement.id || document.activeElement.className"))
        if shown.evaluate("document.activeElement.matches('li.turn')"):
            break
    assert {"skip", "dialogue", "scope", "show", "true", "said", "speaker", "low", "high", "words", "strip"} <= reached
    assert shown.evaluate("document.activeElement.id") == "u0"
    shown.keyboard.press("ArrowDown")
    assert shown.evaluate("document.activeElement.id") == "u1"
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.activeElement.querySelector('details').open")
    shown.keyboard.press("End")
    assert shown.evaluate("document.activeElement.id") == "u8"
    shown.locator("#strip").focus()
    shown.keyboard.press("Home")
    shown.keyboard.press("ArrowRight")
    assert shown.locator("#strip").get_attribute("aria-valuenow") == "2"
    assert "turn 2, Bob: true" in shown.locator("#strip").get_attribute("aria-valuetext")
    shown.keyboard.press("Enter")
    assert shown.evaluate("document.activeElement.id") == "u1"


def test_the_strip_can_be_clicked(report, opened):
    shown = opened(report)
    shown.locator("#dialogue").select_option("1")
    box = shown.locator("#strip svg").bounding_box()
    shown.locator("#strip svg").click(position={"x": box["width"] - 8, "y": 20})
    assert shown.locator("li.turn.lit").get_attribute("id") == "u48"


@pytest.mark.parametrize("width", [380, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hangs_over_at_any_width(report, opened, width, scheme):
    shown = opened(report, width, color_scheme=scheme)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    shown.locator("#u0 summary").click()
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.locator(".matrix").bounding_box()["width"] <= width - 32  # six classes without scrolling
    back, text = shown.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    light, dark = (sum(map(int, c[4:-1].split(","))) for c in (back, text))
    assert (light > 600 and dark < 150) if scheme == "light" else (light < 150 and dark > 600)


def test_hostile_transcripts_stay_text(report, opened):
    shown, data = opened(report), data_of(report)
    for i, text in enumerate(HOSTILE):
        assert shown.locator(f"#u{i} .text").evaluate("e => e.textContent") == text == data["text"][i]
        assert shown.locator(f"#u{i} .text *").count() == 0
    assert shown.evaluate("window.harmed") is None
    assert shown.locator("a[href^='javascript'], img, iframe, link").count() == 0
    assert shown.locator("#u5 .text").bounding_box()["height"] < 700


def test_all_that_can_be_used_has_a_name(report, opened):
    shown = opened(report)
    assert (
        shown.evaluate("""[...document.querySelectorAll('button, select, input, [role], [tabindex="0"]')].filter((e) =>
      !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)""")
        == []
    )
    assert shown.locator("html").get_attribute("lang") == "en" and shown.title()
    assert shown.locator("li.turn").first.get_attribute("aria-label").startswith("turn 1, Ann: true ")


def test_it_prints_without_its_controls(report, opened):
    shown = opened(report, 720, color_scheme="dark")  # about A4
    shown.emulate_media(media="print")
    assert shown.evaluate("document.documentElement.scrollWidth") <= 720
    table, figure = (shown.locator(f"#classes {name}").first.bounding_box() for name in ("table", "figure"))
    assert table["y"] + table["height"] <= figure["y"]
    assert not shown.locator("#filters").is_visible() and shown.locator("#u0").is_visible()
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_long_dialogue_is_shown_in_parts(tmp_path, opened):
    make_run(tmp_path / "run", corpus_of([900]))
    shown = opened(write_page(tmp_path / "run", seen=gather(tmp_path / "run", maps=False)))
    assert turns(shown) == list(range(200))
    shown.locator("#later").click()
    assert turns(shown) == list(range(200, 400))
    shown.locator("#strip").focus()
    shown.keyboard.press("End")
    assert turns(shown)[-1] == 899


def test_runs_side_by_side(tmp_path, opened):
    for seed, name in ((0, "one"), (1, "two")):
        make_run(tmp_path / name, corpus_of([9, 40], sentences=HOSTILE), seed=seed)
    made = tmp_path / "both.html"
    assert compare.main([str(tmp_path / "one"), str(tmp_path / "two"), "--html", str(made)]) == 0
    shown, data = opened(made, 380), data_of(made)
    assert shown.locator("#chat li").count() == len(data["label"]) > 0
    shown.locator("#which").select_option("better")
    better = [i for i, y in enumerate(data["label"]) if data["said"][0][i] != y == data["said"][1][i]]
    assert shown.locator("#chat li").count() == len(better)
    assert shown.evaluate("document.documentElement.scrollWidth") <= 380
    assert shown.evaluate("window.harmed") is None
