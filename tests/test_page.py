"""The page of a study, as data and in a browser.

It is long because both are of one study, which is furnished here by hand.
"""

import base64
import csv
import io
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cf_core.bundle import Bundle, load_bundle, save_bundle
from cf_core.errors import RecordsError
from cf_core.fusion import Generator
from cf_core.melody import Note
from cf_core.nets import initialise
from cf_core.readers import read_file
from cf_core.render import write_midi
from cf_core.training import collect_weights, save_tensors
from cf_core.vae import MelodyVAE
from study.config import StudyConfig
from study.page import build, embed, pack_bytes, write_page
from study.page.data import collect
from study.page.listening import COLUMNS, count_answers
from study.page.model import pack_model
from study.store import Store
from tests.conftest import folder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CONFIG = StudyConfig.model_validate(
    {
        "name": "tiny",
        "melody": {"meters": ["4/4", "3/4"]},
        "core": {"latent_dim": 8, "hidden": 16, "embedding": 8, "depth": 1},
        "fusion": {"scheme": "poster", "hidden": 16, "depth": 2},
        "search": {"lambda": (0.1,), "style_dim": (2,), "seeds": (0, 1)},
    }
)
SOURCES = ("test", "prior", "validation", "validation_prior")
HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
SONGS = [(HOSTILE, "b & c"), ("d", "\u202ee"), (HOSTILE, "f"), ("g", "h"), ("i", "j")]
"""Pair 2 shares a song with pair 0."""
METERS = ["4/4", "3/4", "4/4", "4/4", "3/4"]
SHOWN = [0, 1, 3, 4]
DISTANCE = "larger_edit_distance_q90"
Point = tuple[str, str, str, float | None, int, int | None, dict[str, tuple[float, float]]]
# method, configuration, trial, λ, iteration, seed, then likeness and distance on validation and
# test songs.
POINTS: list[Point] = [
    ("fusion", "l-s2", "l-s2-seed0", 0.1, 1, 0, {"validation": (0.5, 8.0), "test": (0.4, 9.0)}),
    ("fusion", "l-s2", "l-s2-seed1", 0.1, 1, 1, {"validation": (0.5, 8.0), "test": (0.6, 9.0)}),
    ("fusion", "l-s2", "l-s2-seed0", 0.1, 4, 0, {"validation": (0.9, 19.0), "test": (0.3, 20.0)}),
    ("fusion", "l-s2", "l-s2-seed1", 0.1, 4, 1, {"validation": (0.9, 19.0), "test": (0.3, 20.0)}),
    ("lp", "lp-a", "lp-a", None, 1, None, {"validation": (0.2, 4.0), "test": (0.3, 4.0)}),
    ("lp", "lp-a", "lp-a", None, 5, None, {"validation": (0.3, 9.0), "test": (0.9, 9.0)}),
    ("identity", "identity", "identity", None, 0, None,
     {"validation": (0.1, 0.0), "test": (0.1, 0.0)}),
    ("left_twice", "left_twice", "left_twice", None, 0, None,
     {"validation": (0.0, 30.0), "test": (0.0, 30.0)}),
    ("ceiling", "ceiling", "ceiling", None, 0, None,
     {"validation": (1.0, 0.0), "test": (1.0, 0.0)}),
]  # fmt: skip
WITHOUT_NOTES = ("lp-a", 1)


def _metrics(point: Point) -> Iterator[dict[str, Any]]:
    method, configuration, trial, lambda_, iteration, seed, values = point
    for source in SOURCES:
        likeness, distance = values[source.replace("_prior", "").replace("prior", "test")]
        if source == "validation_prior":  # by which nothing is chosen
            likeness = 1 - likeness
        for metric, value, wide in (
            ("indistinguishable", likeness, 0.196),
            ("judge", likeness / 2, 0.1),
            (DISTANCE, distance, 1.0),
        ):
            if metric == DISTANCE and method == "ceiling":
                continue
            yield {
                "trial": trial, "configuration": configuration, "method": method,
                "lambda": lambda_, "style_dim": 2, "seed": seed, "step_size": None,
                "source": source, "iteration": iteration, "metric": metric, "value": value,
                "low": value - wide, "high": value + wide, "n": 5, "excluded": 0,
            }  # fmt: skip


def _latents(trial: str, method: str, lambda_: float | None, iteration: int) -> dict[str, Any]:
    rows = [(source, pair) for source in ("test", "prior") for pair in range(5)]
    draw = np.random.default_rng([len(trial), iteration]).normal
    given = np.random.default_rng(0).normal(size=(2, 10, 8)).astype(np.float32)
    left, right = draw(size=(2, 10, 8)).astype(np.float32)
    songs = [SONGS[pair] if source == "test" else (None, None) for source, pair in rows]
    return {
        "trial": [trial] * 10, "configuration": [trial.rpartition("-seed")[0] or trial] * 10,
        "method": [method] * 10, "lambda": [lambda_] * 10, "source": [row[0] for row in rows],
        "iteration": [iteration] * 10, "pair": [row[1] for row in rows],
        "left_song": [song[0] for song in songs], "right_song": [song[1] for song in songs],
        "meter": [METERS[row[1]] for row in rows], "style": [[0.1, 0.9]] * 10,
        "z_left_in": given[0], "z_right_in": given[1], "z_left": left, "z_right": right,
    }  # fmt: skip


def _furnish(store: Store, points: Sequence[Point] = POINTS) -> MelodyVAE:
    """A study as a run would leave it, with random networks."""
    store.claim(CONFIG.identity("abc"), CONFIG.fingerprint("abc"), CONFIG.name)
    core = MelodyVAE(CONFIG.melody, CONFIG.core)
    initialise(core, torch.Generator().manual_seed(1))
    with torch.no_grad():  # so that latents matter, as those of a trained core do
        for weight in core.parameters():
            weight.mul_(3)
    core.sigma_bar.uniform_(generator=torch.Generator().manual_seed(3))
    save_tensors(collect_weights(core), store.root / "core" / "core.safetensors")
    for point in points:
        method, configuration, trial, lambda_, iteration, seed, _ = point
        store.write("metrics", f"{trial}-{lambda_}-{iteration}", list(_metrics(point)))
        if (trial, iteration) != WITHOUT_NOTES and method not in ("identity", "ceiling"):
            columns = _latents(trial, method, lambda_, iteration)
            store.write("latents", f"{trial}-{lambda_}-{iteration}", columns)
        if method in ("fusion", "lp"):
            row = {
                "trial": trial, "configuration": configuration, "method": method,
                "lambda": lambda_, "style_dim": 2, "seed": seed, "status": "done",
                "fingerprint": "f", "seconds": 1.0, "attempt": 1, "host": "h", "hardware": "c",
                "versions": "{}", "finished_at": datetime(2026, 1, 1, tzinfo=UTC), "parts": "",
                "hidden": 16,
            }  # fmt: skip
            store.write("trials", trial, [row])
    real = _latents("real", "real", None, 0)
    kept = [place for place, source in enumerate(real["source"]) if source == "test"]
    store.write(
        "latents", "real",
        {name: column[kept] if isinstance(column, np.ndarray) else [column[i] for i in kept]
         for name, column in real.items()},
    )  # fmt: skip
    generator = Generator(8, 2, 16, 2, conditional=True, kinds=2)
    initialise(generator, torch.Generator().manual_seed(2))
    bundle = Bundle(
        CONFIG.melody, core, generator, iterations=2, lambda_=0.1, lambda_range=(1e-3, 10.0),
        record={"study": "tiny", "trial": "conditional-style2-seed0"},
    )  # fmt: skip
    save_bundle(bundle, store.root / "bundle")
    return core


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, MelodyVAE]:
    store = Store(tmp_path_factory.mktemp("page") / "tiny")
    return store, _furnish(store)


@pytest.fixture(scope="module")
def report(furnished: tuple[Store, MelodyVAE]) -> Path:
    """The page as a file."""
    path = write_page(furnished[0])
    assert isinstance(path, Path)
    return path


def _pack_letters(text: str) -> bytes:
    """Bytes whose bits are those of such letters, seven of each."""
    bits = "".join(f"{ord(letter):07b}" for letter in text)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - 7, 8))


# ---- as data -------------------------------------------------------------------------------------


def _find(content: dict[str, Any], configuration: str, iteration: int) -> int:
    points = [(one["configuration"], one["iteration"]) for one in content["points"]]
    return points.index((configuration, iteration))


def test_values_are_means_over_seeds_with_intervals_for_songs_and_seeds(
    furnished: tuple[Store, MelodyVAE],
) -> None:
    content = collect(furnished[0], 2)
    place = _find(content, "l-s2", 1)
    likeness = content["values"]["test"]["indistinguishable"]
    # Means of 0.4 and 0.6; songs have a standard error of 0.1 in each, and seeds one of 0.1. Only
    # the seeds' half of the variance is uncertain, with one degree of freedom: 0.02² / 0.01² = 4.
    assert likeness["value"][place] == 0.5
    assert likeness["low"][place] == pytest.approx(0.5 - 2.7764 * 0.02**0.5, abs=1e-4)
    assert likeness["high"][place] == pytest.approx(0.5 + 2.7764 * 0.02**0.5, abs=1e-4)
    # Seeds that agree add nothing: 0.3 ± 0.196.
    same = _find(content, "l-s2", 4)
    assert (likeness["low"][same], likeness["high"][same]) == (0.104, 0.496)
    # One seed keeps the interval that was recorded.
    place = _find(content, "lp-a", 5)
    assert (likeness["low"][place], likeness["high"][place]) == (0.704, 1.096)
    assert content["values"]["test"]["seam"]["value"] == [None] * len(content["points"])
    # What is chosen by comes from validation songs.
    assert content["chosen"]["indistinguishable"][place] == 0.3
    assert content["levels"]["test"]["indistinguishable"] == {"ceiling": [1.0, 0.804, 1.196]}
    assert len(content["points"]) == 6


def test_a_point_counts_only_if_it_is_finite_and_finished_in_every_seed(tmp_path: Path) -> None:
    store = Store(tmp_path / "tiny")
    nan, fine = float("nan"), {"validation": (0.99, 1.0), "test": (0.99, 1.0)}
    halved = fine | {"validation": (nan, 1.0)}
    _furnish(
        store,
        [
            *POINTS,
            ("fusion", "l-s2", "l-s2-seed0", 0.2, 1, 0, fine),  # without its second seed
            ("fusion", "l-s2", "l-s2-seed0", 0.3, 1, 0, fine),
            ("fusion", "l-s2", "l-s2-seed1", 0.3, 1, 1, halved),
        ],
    )
    content = collect(store, 1)
    lambdas = [point["lambda"] for point in content["points"]]
    assert 0.2 not in lambdas
    place = lambdas.index(0.3)
    assert content["chosen"]["indistinguishable"][place] is None
    assert content["chosen"][DISTANCE][place] == 1.0
    assert content["values"]["test"]["indistinguishable"]["value"][place] == 0.99


def test_notes_are_those_of_the_first_seed_for_pairs_without_a_common_song(
    furnished: tuple[Store, MelodyVAE],
) -> None:
    store, core = furnished
    content = collect(store, 8)
    assert [pair["pair"] for pair in content["pairs"]["test"]] == SHOWN
    assert [pair["left"] for pair in content["pairs"]["test"]] == [HOSTILE, "d", "g", "i"]
    assert [pair["left"] for pair in content["pairs"]["prior"]] == [None] * 4
    for (name, seed), source in product((("l-s2", "-seed0"), ("lp-a", "")), ("test", "prior")):
        columns = _latents(name + seed, "", None, 1 if seed else 5)
        packed = content["notes"][source][_find(content, name, 1 if seed else 5)]
        tokens = np.frombuffer(base64.b64decode(packed), "<i2").reshape(4, 2, -1)
        for row, pair in enumerate(SHOWN):
            at = pair + 5 * (source == "prior")
            kind = np.array([["4/4", "3/4"].index(METERS[pair])])
            for side, half in enumerate(("z_left", "z_right")):
                z = torch.from_numpy(columns[half][at : at + 1])
                np.testing.assert_array_equal(tokens[row, side], core.decode_tokens(z, kind)[0])
    assert content["notes"]["test"][_find(content, *WITHOUT_NOTES)] is None
    assert content["notes"]["test"][_find(content, "identity", 0)] == content["given"]["test"]
    # Each pair has a real neighbour in its own meter, of another song where there is one.
    assert [pair["meter"] for pair in content["real"]["pairs"]] == [METERS[pair] for pair in SHOWN]
    assert [pair["pair"] for pair in content["real"]["pairs"]] == [0, 1, 3, 4]


@given(st.binary(max_size=60) | st.text("</!\0\r", max_size=24).map(_pack_letters))
def test_bytes_come_back_from_letters_that_html_leaves_alone(content: bytes) -> None:
    text = pack_bytes(content)
    assert not re.search(r"[\0\r]|<[/!]|<\Z", text)
    bits = "".join(f"{ord(letter) % 128:07b}" for letter in text)
    assert bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - 7, 8)) == content


def test_json_in_the_page_holds_no_markup() -> None:
    text = embed({"name": "</script><!-- & \u2028\u2029"})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"name": "</script><!-- & \u2028\u2029"}


def test_what_is_put_in_is_not_looked_at_again() -> None:
    page = build({"points": []}, {"problem": "{{script}} {{style}}"})
    assert "{{script}} {{style}}" in page


def test_a_page_that_is_too_large_goes_without_its_model_then_with_fewer_pairs(
    furnished: tuple[Store, MelodyVAE], report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = report.read_bytes()
    assert len(whole) < 10_000_000
    again = write_page(furnished[0])
    assert again == report
    assert report.read_bytes() == whole
    monkeypatch.setattr("study.page.MAX_BYTES", len(whole) - 1)
    collecting = Mock(wraps=collect)
    monkeypatch.setattr("study.page.collect", collecting)
    try:
        write_page(furnished[0])
        assert b"too large for this page" in report.read_bytes()
        collecting.assert_called_once_with(furnished[0], 8)
        monkeypatch.setattr("study.page.MAX_BYTES", 1000)
        with pytest.raises(RecordsError, match="too many points"):
            write_page(furnished[0])
        assert [asked.args[1] for asked in collecting.call_args_list[1:]] == [8, 4, 2, 1]
    finally:
        report.write_bytes(whole)


@pytest.mark.parametrize("weight", [float("nan"), 1e6])
def test_a_page_says_that_weights_do_not_fit_into_it(
    furnished: tuple[Store, MelodyVAE],
    report: Path,
    monkeypatch: pytest.MonkeyPatch,
    weight: float,
) -> None:
    whole, bundle = report.read_bytes(), load_bundle(folder(furnished[0]) / "bundle")
    with torch.no_grad():
        bundle.generator.net.biases[0][0, 0] = weight
    monkeypatch.setattr("study.page.load_bundle", lambda _: bundle)
    try:
        write_page(furnished[0])
        assert b"too large for this page, which holds them in half" in report.read_bytes()
    finally:
        report.write_bytes(whole)


def test_a_study_without_a_trial_has_no_page(tmp_path: Path) -> None:
    store = Store(tmp_path / "tiny")
    store.claim(CONFIG.identity("abc"), CONFIG.fingerprint("abc"), CONFIG.name)
    with pytest.raises(RecordsError, match="no configuration is done for all seeds yet"):
        write_page(store)
    assert not (folder(store) / "report.html").exists()


# ---- in a browser --------------------------------------------------------------------------------


@dataclass
class Seen:
    """A page that is open, with what it asked for and complained about."""

    page: "Page"
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self, path: Path, address: str = "") -> "Seen":
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.goto(path.as_uri() + address)
        self.page.wait_for_selector("html[data-ready]", timeout=30_000)
        return self

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)

    def wait(self, told: str, seconds: float = 20) -> None:
        """Until an expression is true. The page's policy keeps Playwright from asking by itself."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(told):
            assert time.monotonic() < end, told
            self.page.wait_for_timeout(20)

    def fused(self) -> str:
        """What the model makes of all that its controls say, as it is drawn."""
        self.wait("document.querySelector('#live-rolls[aria-busy=false] svg') !== null")
        return self.page.inner_html("#live-rolls")

    def point(self) -> str:
        return str(self.page.evaluate("CFPage.state.point.id"))


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def seen(browser: "Browser", report: Path) -> Iterator[Seen]:
    """The page, opened from disk; it may ask for nothing and complain about nothing."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    opened = Seen(context.new_page()).open(report)
    yield opened
    assert [url for url in opened.requests if not url.startswith(("file:", "blob:"))] == []
    assert opened.complaints == []
    context.close()


def test_every_control_of_the_frontier(seen: Seen) -> None:
    page = seen.page
    assert page.title() == "tiny · Connective Fusion study"
    assert seen.point() == "fusion~l-s2~0.1~4"
    for name in ("source", "metric", "axis"):
        values = page.eval_on_selector_all(f"#{name} option", "all => all.map(one => one.value)")
        assert len(values) > 1
        for value in [*values, values[0]]:
            page.select_option(f"#{name}", value)
            assert page.evaluate(f"CFPage.state.{name}") == value
    page.select_option("#metric", "indistinguishable")
    page.select_option("#axis", DISTANCE)
    assert page.locator(".point").count() == 6
    for button in page.locator("#legend button").all():
        button.click()
    assert page.locator(".point").count() == 0
    for button in page.locator("#legend button").all():
        button.click()
    page.locator("#whole").check()
    page.locator("#whole").uncheck()
    page.locator("#tempo").fill("240")
    assert seen.text("#tempo-value") == "240"
    page.locator("#volume").fill("0.2")
    for link in page.locator("nav a").all():
        link.click()
    for summary in page.locator("#detail summary").all():
        summary.click()


def test_a_click_takes_a_point_and_another_place_moves_the_line(seen: Seen) -> None:
    page = seen.page
    place = page.evaluate("CFPage.study.byId.get('lp~lp-a~~5').index")
    page.locator(f"#point-{place}").click()
    assert seen.point() == "lp~lp-a~~5"
    assert seen.text("#detail-title").strip() == "LP, 5 iterations"
    likeness = seen.page.locator("#detail tr.current").first.inner_text().split("\t")
    assert likeness == ["indistinguishable", "0.900", "0.704 to 1.10", "1.00"]
    box = page.locator(".frame").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 40)
    share = (box["width"] / 2 - 52) / (box["width"] - 66)
    line = "CFPage.state.at / document.getElementById('line').max"
    assert page.evaluate(line) == pytest.approx(share, abs=0.02)


def test_the_line_takes_of_each_method_what_is_likest_on_validation_songs(seen: Seen) -> None:
    page = seen.page

    def rows(at: float, source: str = "test") -> dict[str, str]:
        page.evaluate(f"location.hash = '#at={at}&source={source}'")
        seen.wait(f"CFPage.state.at === {at} && CFPage.state.source === '{source}'")
        table = page.locator("#rows tbody tr").all()
        cells = [row.locator("th, td").all_inner_texts() for row in table]
        return {cell[1].strip(): cell[2].strip() for cell in cells}

    near = rows(8.5)
    # λ 0.1 after one iteration is at 8 on validation songs and at 9 on test songs.
    assert near["ours"] == "λ 0.100, 1 iteration"
    assert near["LP"] == "1 iteration"
    assert rows(3)["ours"] == "no point this near"
    far = rows(19.5)
    assert far["ours"] == "λ 0.100, 4 iterations"
    assert far["LP"] == "5 iterations"
    assert list(far) == ["inputs", "ours", "LP", "real neighbours"]
    # Samples of the prior are shown at the same point, as in the study.
    assert rows(19.5, "prior") == far == rows(19.5)
    assert "more to choose from; the study's verdicts correct" in seen.text("#compare-about")
    assert seen.text("#detail").count("95 % intervals are for other songs and seeds.") == 1
    page.locator("#skip-tricks").uncheck()
    assert "left twice" in page.locator("#rows").inner_text()
    page.locator("#rows button.link").first.click()
    assert seen.point() == "fusion~l-s2~0.1~4"
    page.select_option("#pair", "2")
    assert page.evaluate("CFPage.state.pair") == 2
    # Of points that are equally like real pairs, the nearest is taken.
    nearest = """({ study, state }) => {
      study.chosen.indistinguishable.fill(0.5);
      const farthestFirst = [...study.groups().get("ours")].reverse();
      return study.candidate(farthestFirst, state.axis, 19.5).id;
    }"""
    assert page.evaluate(f"({nearest})(CFPage)") == "fusion~l-s2~0.1~1"


def test_what_was_not_kept_is_said(seen: Seen) -> None:
    seen.page.evaluate("location.hash = '#point=lp~lp-a~~1&at=5'")
    seen.wait("CFPage.state.at === 5")
    assert "The notes of this point were not kept." in seen.text("#pairs")
    assert "notes were not kept" in seen.text("#rows")


def test_the_address_brings_a_selection_back(seen: Seen, report: Path) -> None:
    page = seen.page
    page.select_option("#metric", "judge")
    page.select_option("#source", "prior")
    page.select_option("#pair", "1")
    page.locator("#line").fill("12")
    page.locator(".frame").focus()
    page.keyboard.press("ArrowLeft")
    address = page.evaluate("location.hash")
    other = Seen(page.context.new_page()).open(report, address)
    for one in ("metric", "source", "pair", "axis", "at", "point.id"):
        told = f"CFPage.state.{one}"
        assert other.page.evaluate(told) == page.evaluate(told), one
    assert other.point() == "fusion~l-s2~0.1~1"
    assert other.complaints == []
    # What nobody can have selected is passed over.
    page.evaluate("location.hash = '#metric=__proto__&point=x&pair=99&at=nonsense&source=<b>'")
    seen.wait("CFPage.state.metric === 'indistinguishable'")
    assert seen.point() == "fusion~l-s2~0.1~4"


def test_the_keyboard_alone_reaches_a_point_and_plays_it(seen: Seen) -> None:
    page = seen.page
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('role')") == "listbox":
            break
    page.keyboard.press("ArrowLeft")
    assert seen.point() == "fusion~l-s2~0.1~1"
    marked = page.evaluate("document.activeElement.getAttribute('aria-activedescendant')")
    assert page.locator(f"#{marked}").get_attribute("aria-selected") == "true"
    assert "λ 0.100, 1 iteration" in seen.text("#live-region")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("CFPage.state.point.method") != "fusion"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    seen.wait("document.getElementById('playing').textContent.startsWith('Playing: ours')")
    page.keyboard.press("Tab")
    page.locator("#stop").focus()
    page.keyboard.press("Enter")
    assert seen.text("#playing") == "Nothing plays."


def test_nothing_sounds_before_a_click_and_rows_play_in_turn(seen: Seen) -> None:
    page = seen.page
    page.evaluate("""() => {
      window.heard = [];
      new MutationObserver(() => heard.push(document.getElementById('playing').textContent))
        .observe(document.getElementById('playing'), { childList: true });
    }""")
    assert seen.text("#playing") == "Nothing plays."
    page.locator("#tempo").fill("240")
    page.evaluate("location.hash = '#at=19.5'")
    seen.wait("CFPage.state.at === 19.5")
    page.evaluate("document.getElementById('tempo').max = 6000")
    page.locator("#tempo").fill("6000")
    page.locator("#play-all").click()
    seen.wait("heard.at(-1) === 'Nothing plays.' && heard.length > 3")
    played = [text for text in page.evaluate("heard") if text.startswith("Playing")]
    assert played == [f"Playing: {name}" for name in ("inputs", "ours", "LP", "real neighbours")]


def test_a_note_sounds_at_its_pitch_and_time(seen: Seen) -> None:
    samples = np.array(
        seen.page.evaluate(
            "CFSound.render([{onset: 1, duration: 2, pitch: 69}], 120, 8000).then(x => [...x])"
        )
    )
    assert np.abs(samples[:3900]).max() == 0  # half a second before the note
    sounding = samples[4400:11000]
    assert 0.02 < np.abs(sounding).max() < 1
    spectrum = np.abs(np.fft.rfft(sounding * np.hanning(len(sounding))))
    assert np.fft.rfftfreq(len(sounding), 1 / 8000)[spectrum.argmax()] == pytest.approx(440, abs=2)
    assert np.abs(samples[12800:]).max() < 0.01
    outputs = "CFPage.study.outputs('test', CFPage.state.point, 0)"
    peak = seen.page.evaluate(
        f"CFSound.render(CFData.join({outputs}), 160)"
        ".then(x => x.reduce((most, one) => Math.max(most, Math.abs(one)), 0))"
    )
    assert peak > 0.02


def test_names_of_songs_stay_text(seen: Seen) -> None:
    page = seen.page
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 4
    page.wait_for_selector(".card h4")
    assert page.locator(".card h4").first.inner_text().startswith("1. </script><script>window.")
    assert "\u202e" not in page.inner_text("body")


def test_the_policy_forbids_the_network(browser: "Browser", report: Path) -> None:
    opened = Seen(browser.new_page()).open(report)
    for attempt in (
        "fetch('http://127.0.0.1:9/').then(() => 'open', () => 'refused')",
        "new Promise(told => { const s = new Image(); s.onerror = () => told('refused');"
        " s.onload = () => told('open'); s.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACw='; })",
    ):
        assert opened.page.evaluate(attempt) == "refused"
    assert all("Content Security Policy" in text for text in opened.complaints)
    assert [url for url in opened.requests if url.startswith("http")] == []
    opened.page.close()


# ---- the model -----------------------------------------------------------------------------------


def test_the_model_follows_every_slider_and_the_pad(seen: Seen) -> None:
    page = seen.page
    # Random networks change notes anyhow; what counts is that each control is heard.
    start = seen.fused()
    names = page.eval_on_selector_all(".sliders input", "all => all.map(one => one.id)")
    assert names == ["live-lambda", "live-iterations", "live-style-1", "live-style-2"]
    for name in names:
        low = page.get_attribute(f"#{name}", "min")
        assert low is not None
        page.locator(f"#{name}").fill(low)
    assert seen.fused() != start
    box = page.locator("#pad").bounding_box()
    assert box is not None
    page.locator("#pad").scroll_into_view_if_needed()
    page.locator("#pad").click(position={"x": box["width"] * 0.75, "y": box["height"] * 0.25})
    assert float(page.input_value("#live-style-1")) == pytest.approx(0.75, abs=0.02)
    assert float(page.input_value("#live-style-2")) == pytest.approx(0.75, abs=0.02)
    page.keyboard.press("ArrowLeft")
    assert float(page.input_value("#live-style-1")) == pytest.approx(0.70, abs=0.02)
    page.select_option("#live-pair", "1")
    assert seen.fused() != start
    page.locator("#live-play-outputs").click()
    seen.wait("document.getElementById('playing').textContent === 'Playing: outputs'")
    assert "grid steps changed" in seen.text("#live-account")


def test_a_model_of_any_lambda_may_stand_beside_the_selected_one(
    browser: "Browser", furnished: tuple[Store, MelodyVAE], tmp_path: Path
) -> None:
    store = furnished[0]
    moving = load_bundle(folder(store) / "bundle")
    fixed = replace(
        moving,
        generator=Generator(8, 1, 16, 2, kinds=2),
        lambda_=None,
        lambda_range=None,
        record={"trial": HOSTILE},
    )
    initialise(fixed.generator, torch.Generator().manual_seed(5))
    path = tmp_path / "report.html"
    path.write_text(build(collect(store, 2), pack_model(fixed, moving)), encoding="utf-8")
    seen = Seen(browser.new_page()).open(path)
    page = seen.page

    def controls() -> list[str]:
        shown = page.eval_on_selector_all(".sliders input", "all => all.map(one => one.id)")
        return [name.removeprefix("live-") for name in shown]

    seen.fused()
    assert controls() == ["iterations", "style-1"]
    assert seen.text("#live-fixed") == "λ is fixed in this model."
    names = page.locator("#live-map option").all_inner_texts()
    assert names[0].endswith("…, selected, one λ")
    assert names[1] == "conditional-style2-seed0, any λ"
    page.locator("#live-style-1").fill("0.9")
    before = seen.fused()
    page.select_option("#live-map", "1")
    assert controls() == ["lambda", "iterations", "style-1", "style-2"]
    assert page.locator("#live-fixed").count() == 0
    assert page.input_value("#live-style-1") == "0.9"
    near = seen.fused()
    page.locator("#live-lambda").fill(page.get_attribute("#live-lambda", "min") or "")
    assert controls()
    assert len({before, near, seen.fused()}) == 3
    page.select_option("#live-map", "0")
    assert controls() == ["iterations", "style-1"]
    assert seen.fused() == before
    assert seen.complaints == []
    page.close()


def test_two_files_are_fused_and_saved(seen: Seen, tmp_path: Path) -> None:
    page = seen.page
    for side, pitches in (("left", range(60, 76)), ("right", range(76, 60, -1))):
        notes = [Note(Fraction(at), Fraction(1), pitch) for at, pitch in enumerate(pitches)]
        write_midi(notes, tmp_path / f"{side}.mid", 120.0)
        page.set_input_files(f"#file-{side}", tmp_path / f"{side}.mid")
        told = "document.getElementById('live-told').textContent"
        seen.wait(f"{told} === '{side}.mid is the {side} melody.'")
    seen.fused()
    inputs = page.locator("#live-rolls svg").first.get_attribute("aria-label")
    assert inputs == (
        "Inputs: left half G♯4 A4 A♯4 B4 C5 C♯5 D5 D♯5; right half E5 D♯5 D5 C♯5 C5 B4 A♯4 A4"
    )
    with page.expect_download() as waiting:
        page.locator("#live-save").click()
    waiting.value.save_as(tmp_path / "fused.mid")
    outputs = page.locator("#live-rolls svg").last.get_attribute("aria-label")
    assert outputs is not None
    shown = outputs.replace("Outputs: left half ", "").replace("; right half", "").split()
    assert len(read_file(tmp_path / "fused.mid").notes) == len([n for n in shown if n != "silent"])
    (tmp_path / "bad.mid").write_bytes(b"no melody")
    page.set_input_files("#file-left", tmp_path / "bad.mid")
    seen.wait("document.getElementById('live-told').textContent.startsWith('bad.mid: ')")


# ---- the blind test ------------------------------------------------------------------------------


def test_a_blind_test_comes_out_as_a_file_that_is_counted(seen: Seen, tmp_path: Path) -> None:
    page = seen.page
    page.evaluate("location.hash = '#at=19.5'")
    seen.wait("CFPage.state.at === 19.5")
    page.fill("#listener", '=cmd|"x", Ann')
    page.fill("#seed", "7")
    page.click("#begin")
    for trial in range(24):
        assert seen.text(".trial-number") == f"Trial {trial + 1} of 24"
        assert page.locator("#choose-a").is_disabled()
        page.click("#hear-b")
        assert page.locator("#choose-a").is_disabled()
        page.click("#hear-a")
        shown = page.inner_text("#blind").lower()
        assert not any(name in shown for name in ("lp", "ours", "inputs", "neighbours"))
        page.click("#choose-a" if trial % 3 else "#choose-b")
    text = page.input_value("#answers")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 24
    assert [row["chosen"] for row in rows] == ["a" if i % 3 else "b" for i in range(24)]
    assert [row["trial"] for row in rows] == [str(i + 1) for i in range(24)]
    shared = {(r["study"], r["seed"], r["listener"], r["axis"], r["distance"]) for r in rows}
    assert shared == {("tiny", "7", "cmdx Ann", DISTANCE, "19.5")}
    assert {int(row["pair"]) for row in rows} == set(SHOWN)
    # Of four kinds of pairs, every two met as often as any others, and no order is always the same.
    meetings = Counter(frozenset((row["a"], row["b"])) for row in rows)
    assert set(meetings.values()) == {4}
    assert {row["a"] for row in rows} == {"inputs", "ours", "lp", "real"}
    points = {(r[side], r[f"{side}_point"]) for r in rows for side in "ab"}
    assert ("ours", "fusion~l-s2~0.1~4") in points
    assert ("real", "") in points
    path = tmp_path / "ann.csv"
    path.write_text(text)
    counted = {row["method"]: row for row in count_answers([path]).to_dicts()}
    for name, row in counted.items():
        times = [r for r in rows if name in (r["a"], r["b"])]
        assert row["answers"] == len(times) == 12
        assert row["preference"] == sum(r[r["chosen"]] == name for r in times) / 12
        assert (row["listeners"], row["low"], row["high"]) == (1, None, None)
    # The seed says it all.
    draw = "JSON.stringify(CFBlind.draw(CFPage.study, {source: 'test', axis: CFPage.state.axis,"
    drawn = [
        page.evaluate(
            f"{draw} distance: 19.5, seed: {seed}}}).map(x => [x.pair, x.a.name, x.b.name]))"
        )
        for seed in (7, 7, 8)
    ]
    order = [[SHOWN.index(int(row["pair"])), row["a"], row["b"]] for row in rows]
    assert json.loads(drawn[0]) == json.loads(drawn[1]) == order
    assert json.loads(drawn[2]) != order


def test_answers_are_resumed_only_with_the_trials_that_were_heard(seen: Seen) -> None:
    page = seen.page
    page.fill("#seed", "7")
    page.click("#begin")
    for side in "ab":
        page.click(f"#hear-{side}")
    page.click("#choose-a")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    page.click("#resume")
    assert seen.text(".trial-number") == "Trial 2 of 24"
    # A page that was written again may have other points, and so other trials.
    page.evaluate("""() => {
      const { study } = CFPage;
      study.pairs[CFPage.state.source][0].pair = 99;
      new CFBlind.Blind(study, () => CFPage.state);
    }""")
    assert page.locator("#begin").count() == 1
    assert page.locator("#resume").count() == 0
