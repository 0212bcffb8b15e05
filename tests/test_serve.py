"""Fusing over HTTP: equal to fusing files, and every bad request gets a problem document.

It is long, since each kind of bad request has its test.
"""

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from cf_core import isolation
from cf_core.bundle import Bundle, load_bundle, save_bundle
from cf_core.errors import UserError
from cf_core.fuse import fuse_files
from cf_core.ingest import read_builtin_tunes
from cf_core.melody import Note
from cf_core.readers import read_file
from cf_core.render import write_midi
from study import cli
from study.serve import PROBLEMS, Limits, make_app, serve
from tests import fuzz
from tests.melodies import score, xml_note

ROOT = Path(__file__).parent.parent
ABC = "X:1\nM:4/4\nL:1/4\nQ:1/4=90\nK:C\nC D E F | G A B c | c2 G2 | E2 A2 |]\n"
CHORDS = "X:1\nM:4/4\nL:1/4\nK:C\n[CE] D E F | G A B c | [CEG]2 G2 | E2 A2 |]\n"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle()


@pytest.fixture(scope="module")
def app(bundle: Bundle) -> FastAPI:
    return make_app(bundle)


@pytest.fixture(scope="module")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with melodies of each format."""
    folder = tmp_path_factory.mktemp("tunes")
    for name, found in (("left", range(60, 76)), ("right", range(76, 60, -1))):
        notes = [Note(Fraction(at), Fraction(1), pitch) for at, pitch in enumerate(found)]
        write_midi(notes, folder / f"{name}.mid", 100.0)
    (folder / "tune.abc").write_text(ABC)
    (folder / "chords.abc").write_text(CHORDS)
    measures = ["".join(xml_note(step, 4, 1) for step in "CDEF")] * 4
    (folder / "two.xml").write_bytes(score({"Voice": measures, "Flute": measures[::-1]}))
    return folder


def ask(
    app: FastAPI, *requests: dict[str, Any], path: str = "/fuse", method: str = "GET"
) -> list[httpx.Response]:
    """Send requests at one time, by POST if they have content, and return the answers."""

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await asyncio.gather(
                *(client.request("POST" if each else method, path, **each) for each in requests)
            )

    return asyncio.run(send())


def upload(left: Path, right: Path, accept: str = "*/*", **options: object) -> dict[str, Any]:
    return {
        "files": {name: (path.name, path.read_bytes()) for name, path in
                  (("left", left), ("right", right))},
        "data": {name: str(value) for name, value in options.items()},
        "headers": {"Accept": accept},
    }  # fmt: skip


def plain(*pitches: int, length: float = 1) -> dict[str, Any]:
    notes = [{"onset": length * n, "duration": length, "pitch": p} for n, p in enumerate(pitches)]
    return {"notes": notes}


def refused(answer: httpx.Response, kind: str, *words: str) -> str:
    """A problem document of a kind, which says these words."""
    status, title = PROBLEMS[kind]
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found.keys() == {"type", "title", "status", "detail"}
    assert found["type"] == f"tag:connective-fusion,2026:{kind}", found
    assert (answer.status_code, found["status"], found["title"]) == (status, status, title)
    detail: str = found["detail"]
    for word in words:
        assert word in detail
    return detail


# ---- what is answered ----------------------------------------------------------------------------


def test_the_page_shows_what_is_answered(app: FastAPI, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (told,) = re.findall(r'^\{"notes".*?\}$', page, re.DOTALL | re.MULTILINE)
    begin, end = told.replace("\n", "").split(" ...")
    settings, fit = end.split('"fit":')
    tunes = dict(read_builtin_tunes())
    left, right = (tmp_path / f"airdsAirs-book1-{number}.abc" for number in (93, 120))
    for path in (left, right):
        path.write_bytes(tunes[path.name])
    wanted = {"edits": 8, "seed": 1, "whole": "false"}
    (answer,) = ask(app, upload(left, right, "application/json", **wanted))
    assert answer.text.startswith(begin)
    assert settings in answer.text
    assert answer.json()["fit"] == pytest.approx(float(fit.rstrip("}")), abs=1e-3)


@pytest.mark.parametrize(
    ("left", "right", "command", "options"),
    [
        ("left.mid", "right.mid", "", {}),
        ("left.mid", "tune.abc", "--seed 3 --lambda 0.1", {"seed": 3, "lambda": 0.1}),
        (
            "left.mid", "right.mid", "--no-whole --edits 6 --lead right",
            {"whole": "false", "edits": 6, "lead": "right"},
        ),
        (
            "tune.abc", "right.mid", "--seam auto --transpose-right auto",
            {"seam": "auto", "transpose_right": "auto"},
        ),
        (
            "left.mid", "right.mid",
            "--left-bars 1-2 --right-bars 3-4 --tempo 90 --transpose-right -2 --lead 0.25",
            {"left_bars": "1-2", "right_bars": "3-4", "tempo": 90, "transpose_right": -2,
             "lead": 0.25},
        ),
        (
            "left.mid", "chords.abc", "--style 0.1,0.2,0.3,0.4 --iterations 2 --chords top",
            {"style": "0.1,0.2,0.3,0.4", "iterations": 2, "chords": "top"},
        ),
        (
            "two.xml", "two.xml", "--part Voice --part 2",
            {"left_part": "Voice", "right_part": 2},
        ),
    ],
)  # fmt: skip
def test_midi_is_what_the_command_writes(
    app: FastAPI, tunes: Path, tmp_path: Path, left: str, right: str, command: str,
    options: dict[str, Any],
) -> None:  # fmt: skip
    output = tmp_path / "fused.mid"
    files = [str(tunes / left), str(tunes / right)]
    done = CliRunner().invoke(
        cli.app, ["fuse", *files, *shlex.split(command), "--output", str(output)]
    )
    assert done.exit_code == 0, done.exception
    (answer,) = ask(app, upload(tunes / left, tunes / right, **options))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "audio/midi"
    assert answer.content == output.read_bytes()


def test_notes_that_may_not_change_come_back(app: FastAPI) -> None:
    left, right = plain(60, 62, 64, 65, 67, 69, 71, 72), plain(64, 62, 60, 62, length=2)
    asked = {"left": left | {"tempo": 90}, "right": right, "edits": 0, "style": [0.5] * 4}
    (answer,) = ask(app, {"json": asked, "headers": {"Accept": "application/json"}})
    found = answer.json()
    shifted = [note | {"onset": note["onset"] + 8} for note in right["notes"]]
    assert found["notes"] == left["notes"] + shifted
    assert found["meters"] == [{"onset": 0, "text": "4/4"}]
    assert found["markers"] == [
        {"onset": 0, "text": "fused"},
        {"onset": 8, "text": "seam"},
        {"onset": 16, "text": "end of fused"},
    ]
    del found["notes"], found["meters"], found["markers"], found["fit"]
    assert found == {
        "tempo": 90, "left_bars": [1, 2], "right_bars": [1, 2], "fused_bars": [1, 4],
        "edits": [0, 0], "seed": 0, "style": [0.5] * 4, "lambda": 10, "iterations": 4, "lead": 0.5,
        "transposed": 0,
    }  # fmt: skip


def test_notes_are_fused_as_a_file_of_them_is(
    app: FastAPI, bundle: Bundle, tunes: Path, tmp_path: Path
) -> None:
    fused = fuse_files(tunes / "left.mid", tunes / "right.mid", bundle, lambda_=0.01, seed=5)
    asked = {"left": plain(*range(60, 76)) | {"tempo": 100}, "right": plain(*range(76, 60, -1))}
    chosen = {"lambda": 0.01, "seed": 5}
    midi, numbers, files = ask(
        app,
        {"json": asked | chosen},
        {"json": asked | chosen, "headers": {"Accept": "application/json"}},
        upload(tunes / "left.mid", tunes / "right.mid", "application/json", **chosen),
    )
    notes, meters, markers = fused.tune
    write_midi(notes, tmp_path / "x.mid", fused.tempo, meters, markers)
    assert midi.content == (tmp_path / "x.mid").read_bytes()
    assert [(n["onset"], n["duration"], n["pitch"]) for n in numbers.json()["notes"]] == [
        (note.onset, note.duration, note.pitch) for note in notes
    ]
    assert numbers.json()["edits"] == list(fused.edits)
    assert numbers.json()["fit"] == fused.fit
    assert files.content == numbers.content


def test_triplets_of_decimal_numbers_are_triplets(app: FastAPI) -> None:
    third = {"notes": [
        {"onset": round(n / 3, 4), "duration": 0.3333, "pitch": 60 + n % 5} for n in range(24)
    ]}  # fmt: skip
    asked = {"left": third, "right": third, "edits": 0, "whole": False}
    (answer,) = ask(app, {"json": asked, "headers": {"Accept": "application/json"}})
    assert [note["onset"] for note in answer.json()["notes"]] == [n / 3 for n in range(48)]


def test_notes_shorter_than_those_of_json_are_answered(app: FastAPI, tmp_path: Path) -> None:
    short = tmp_path / "short.abc"
    short.write_text("X:1\nM:4/4\nL:1/4\nK:C\nCCC C/2048 z2047/2048|CDEF|GFED|CDEF|GFED|\n")
    (answer,) = ask(app, upload(short, short, "application/json"))
    assert answer.status_code == 200, answer.text
    assert answer.json()["notes"][3] == {"onset": 3, "duration": 1 / 2048, "pitch": 60}
    described = ask(app, {}, path="/openapi.json")[0].json()
    schema = {"$ref": "#/components/schemas/Answer", "components": described["components"]}
    Draft202012Validator(schema).validate(answer.json())


def test_the_same_request_gets_the_same_bytes(app: FastAPI, tunes: Path) -> None:
    def request(accept: str, edits: int) -> dict[str, Any]:
        return upload(tunes / "left.mid", tunes / "right.mid", accept, seed=1, edits=edits)

    for accept in ("audio/midi", "application/json"):
        once, *again = ask(app, *[request(accept, 12)] * 6)
        assert {answer.content for answer in again} == {once.content}
        assert ask(app, request(accept, 0))[0].content != once.content


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "audio/midi"),
        ("audio/*", "audio/midi"),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("audio/midi;q=0.4, application/json;q=0.5", "application/json"),
        ("audio/midi;q=0, */*", "application/json"),
        ("audio/midi, application/json", "audio/midi"),
        ("text/html, */*;q=0.1", "audio/midi"),
    ],
)
def test_the_answer_is_of_the_type_liked_best(
    app: FastAPI, tunes: Path, accept: str, media: str
) -> None:
    (answer,) = ask(app, upload(tunes / "left.mid", tunes / "right.mid", accept))
    assert answer.headers["content-type"] == media


def test_capabilities_are_those_of_the_bundle(app: FastAPI, bundle: Bundle) -> None:
    (answer,) = ask(app, {}, path="/capabilities")
    found = answer.json()
    form = bundle.form
    assert (found["meters"], found["divisions"]) == (list(form.meters), list(form.divisions))
    assert found["pitches"] == {"lowest": form.lowest, "highest": form.highest}
    assert found["lambda"] == {"default": 0.1, "least": 0.001, "most": 10.0}
    assert found["style_dimensions"] == len(bundle.draw_style(0))
    assert found["lead"] == bundle.lead
    # What it says of limits is where requests begin to be refused.
    melodies = {"left": plain(*range(60, 68)), "right": plain(*range(60, 68))}
    most, size = found["iterations"]["most"], found["style_dimensions"]
    assert found["iterations"]["default"] == bundle.iterations
    highest = [found["pitches"]["highest"]] * 8
    good = [{"iterations": most}, {"lambda": 10.0}, {"style": [1] * size}]
    bad = [{"iterations": most + 1}, {"lambda": 10.1}, {"style": [1] * (size + 1)}]
    asked = [{"json": melodies | each} for each in (*good, {"left": plain(*highest)}, *bad)]
    asked.append({"json": melodies | {"left": plain(*(pitch + 1 for pitch in highest))}})
    assert [answer.status_code for answer in ask(app, *asked)] == [200] * 4 + [422] * 4
    notes = found["limits"]["notes"]
    long = {"left": plain(*[60] * (notes + 1), length=0.25)}
    refused(ask(app, {"json": melodies | long})[0], "option", "left.notes", str(notes))


def test_health(app: FastAPI) -> None:
    assert ask(app, {}, path="/health")[0].json() == {"status": "ok"}
    (head,) = ask(app, {}, path="/health", method="HEAD")
    assert (head.status_code, head.content) == (200, b"")


def test_the_description_is_true(app: FastAPI, tunes: Path) -> None:
    described = ask(app, {}, path="/openapi.json")[0].json()
    post = described["paths"]["/fuse"]["post"]
    forms, numbers = post["requestBody"]["content"].values()

    def check(document: object, schema: dict[str, Any]) -> None:
        whole = schema | {"components": described["components"]}
        Draft202012Validator(whole).validate(document)

    check(numbers["example"], numbers["schema"])
    plain_answer, form_answer, wrong = ask(
        app,
        {"json": numbers["example"], "headers": {"Accept": "application/json"}},
        upload(tunes / "left.mid", tunes / "right.mid", "application/json", **forms["example"]),
        {"json": {}},
    )
    answers = post["responses"]
    for answer in (plain_answer, form_answer):
        assert answer.status_code == 200, answer.text
        check(answer.json(), answers["200"]["content"]["application/json"]["schema"])
    check(wrong.json(), answers["422"]["content"]["application/problem+json"]["schema"])
    assert answers.keys() == {"200", *(str(int(status)) for status, _ in PROBLEMS.values())}


# ---- what is refused -----------------------------------------------------------------------------

GOOD = {"left": plain(*range(60, 68)), "right": plain(*range(60, 68))}


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, "malformed",
         ["JSON", "/openapi.json"]),
        ({"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}, "malformed",
         ["JSON"]),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, "malformed",
         ["boundary"]),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
         "malformed", ["send multipart/form-data"]),
        ({"json": []}, "option", ["the body: Input should be an object"]),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, "media-type",
         ["text/plain", "multipart/form-data"]),
        ({"json": GOOD, "headers": {"Accept": "text/html"}}, "not-acceptable", ["audio/midi"]),
        ({"json": GOOD, "headers": {"Accept": "audio/midi;q=0"}}, "not-acceptable", []),
        ({"json": GOOD | {"lamda": 1}}, "option", ["lamda: there is no such option"]),
        ({"json": GOOD | {"left_bars": "1"}}, "option", ["left_bars"]),
        ({"json": GOOD | {"lead": "both"}}, "option", ["lead"]),
        ({"json": GOOD | {"seed": -1}}, "option", ["seed"]),
        ({"json": GOOD | {"edits": 10**20}}, "option", ["edits"]),
        ({"json": GOOD | {"left": {"notes": []}}}, "option", ["left.notes"]),
        ({"json": GOOD | {"left": plain(200)}}, "option", ["left.notes.0.pitch"]),
        ({"content": json.dumps(GOOD | {"tempo": float("nan")}).encode(),
          "headers": {"Content-Type": "application/json"}}, "option", ["tempo"]),
        ({"data": {"left": "x"}, "files": {"right": ("r.mid", b"x")}}, "option",
         ["left: give a file with a name that ends in .mid"]),
        ({"data": {"edits": ["3", "8"]}, "files": {"right": ("r.mid", b"x")}}, "option",
         ["edits: given 2 times; give it once"]),
        ({"json": GOOD | {"tempo": 5}}, "melody", ["tempo", "give a tempo of 10 to 500"]),
        ({"json": GOOD | {"left_bars": "8-9"}}, "melody", ["left: bars 8-9", "choose among them"]),
        ({"json": GOOD | {"left": plain(60, length=5000)}}, "melody", ["left: has 1250 bars"]),
        ({"json": GOOD | {"right": plain(*range(60, 72)) | {"meter": "7/4"}}}, "melody",
         ["right: no 2 neighbouring bars"]),
        ({"json": GOOD | {"lambda": 11}}, "bundle", ["give a λ in this range"]),
        ({"json": GOOD | {"style": [0.5]}}, "bundle", ["this bundle takes 4"]),
        ({"json": GOOD | {"edits": 3, "lambda": 1}}, "bundle", ["give one"]),
    ],
)  # fmt: skip
def test_a_bad_request_gets_a_problem_document(
    app: FastAPI, request_: dict[str, Any], kind: str, words: list[str]
) -> None:
    refused(ask(app, request_)[0], kind, *words)


def test_other_paths_and_methods_get_problem_documents(app: FastAPI) -> None:
    for path, answers in {
        "/nowhere": ask(app, {}, path="/nowhere"),
        "/fuse": ask(app, {}),
        "/health": ask(app, {"json": {}}, path="/health"),
    }.items():
        status = 404 if path == "/nowhere" else 405
        assert answers[0].status_code == status
        assert answers[0].headers["content-type"] == "application/problem+json"
        assert answers[0].json()["type"] == "about:blank"


def test_a_mistake_of_our_own_tells_strangers_nothing(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("study.serve.fuse_files", fail)
    (answer,) = ask(app, {"json": GOOD})
    assert "secret" not in answer.text
    refused(answer, "internal", "report")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../../etc/passwd.mid", "passwd.mid"),
        ("C:\\autoexec.abc", "autoexec.abc"),
        ("\x1b[2Jnew\nline.mid", "\N{REPLACEMENT CHARACTER}[2Jnew"),
        ("x" * 500 + ".mid", "x" * 96 + ".mid:"),
        ("passwd", "passwd: not a melody file: its name must end in .mid"),
    ],
)
def test_names_are_shown_and_never_used(
    app: FastAPI, tunes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str,
    shown: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    head = 'Content-Disposition: form-data; name="{}"; filename="{}"\r\n\r\n'
    whole = (tunes / "left.mid").read_bytes()
    parts = [head.format(*pair).encode() + content for pair, content in (
        (("left", name.replace("\n", "%0A")), b"no melody"), (("right", "r.mid"), whole),
    )]  # fmt: skip
    body = b"--b\r\n" + b"\r\n--b\r\n".join(parts) + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    detail = refused(ask(app, {"content": body, "headers": headers})[0], "melody", shown)
    assert "/" not in detail
    assert "\\" not in detail
    assert detail.isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_hostile_files_cost_only_themselves(bundle: Bundle, tunes: Path, tmp_path: Path) -> None:
    asked = [upload(tunes / "left.mid", tunes / "right.mid")]
    for name, data in fuzz.files(40, seed=2):
        (tmp_path / name).write_bytes(data)
        asked.append(upload(tmp_path / name, tunes / "left.mid"))
    good, *answers = ask(make_app(bundle, Limits(requests=41, seconds=300.0)), *asked)
    assert good.status_code == 200
    assert {answer.status_code for answer in answers} == {200, 422}
    for answer in answers:
        if answer.status_code != 200:
            refused(answer, "melody")


def test_a_file_that_takes_too_long_is_stopped_alone(
    app: FastAPI, tunes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow.abc"
    slow.write_text("X:1\nM:4/4\nL:1/4\nK:C\n" + "CDEF|" * 1600)
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "SECONDS", 0.005)
        (answer,) = ask(app, upload(tunes / "left.mid", slow))
    refused(answer, "melody", "slow.abc", "too slow (more than 0.005 seconds)", "another file")
    assert ask(app, upload(tunes / "left.mid", tunes / "right.mid"))[0].status_code == 200


def test_a_melody_that_would_take_too_long_to_fuse(app: FastAPI, tunes: Path) -> None:
    long = tunes / "long.mid"
    write_midi([Note(Fraction(4 * n), Fraction(4), 60) for n in range(1001)], long, 120.0)
    (answer,) = ask(app, upload(long, tunes / "left.mid"))
    refused(answer, "melody", "long.mid: has 1001 bars", "at most 1000,", "send a part")


def test_the_limits_of_an_application_are_those_of_melodies(bundle: Bundle, tunes: Path) -> None:
    short = make_app(bundle, Limits(notes=12))
    numbers = {"json": GOOD | {"left": plain(*range(60, 73))}}
    for answer, name in zip(
        ask(short, numbers, upload(tunes / "left.mid", tunes / "right.mid")),
        ("left: has 13 notes", "left.mid: has 16 notes"),
        strict=True,
    ):
        refused(answer, "melody", name, "at most 12,")
    assert ask(short, {"json": GOOD})[0].status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {f"unknown{number}": 1 for number in range(200)},
        {"left": {"notes": [{f"x{number}": 1 for number in range(200)}]}},
    ],
)
def test_a_request_with_too_many_wrong_fields_is_told_so(
    app: FastAPI, wrong: dict[str, Any]
) -> None:
    detail = refused(ask(app, {"json": GOOD | wrong})[0], "option", "too many fields", "/openapi")
    assert len(detail) < 100


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"style": [""] * 100_000}, "style.0: "),
        ({"style": [0.5] * 65}, "style: List should have at most 64 items"),
        ({"style": ",".join(["0.5"] * 100_000)}, "style: List should have at most 64 items"),
        ({"style": "," * 100_000}, "style.0: "),
        ({"left": {"notes": [{}] * 100_000}}, "left.notes.0.onset: "),
    ],
)
def test_the_first_wrong_item_of_a_list_is_told_alone(
    app: FastAPI, wrong: dict[str, Any], words: str
) -> None:
    detail = refused(ask(app, {"json": GOOD | wrong})[0], "option", words)
    assert not re.search(r"\.1\b", detail)


def test_a_request_that_is_too_large(app: FastAPI, tunes: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.mid"
    large.write_bytes(bytes(Limits().body))
    (answer,) = ask(app, upload(large, tunes / "left.mid"))
    refused(answer, "too-large", "4,194,304 bytes", ".mxl")


def test_json_that_is_too_large(app: FastAPI) -> None:
    """It would hold all other requests while it is parsed, so it may not have as many bytes."""
    most = ask(app, {}, path="/capabilities")[0].json()["limits"]["json"]
    assert most == 2**19
    body = json.dumps(GOOD).ljust(most)
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    fits, large = ask(app, *({"content": text, "headers": headers} for text in (body, body + " ")))
    assert fits.status_code == 200
    refused(large, "too-large", "524,288 bytes", "files")
    whole = plain(*[60] * Limits().notes, length=0.25)
    assert len(json.dumps({"left": whole, "right": whole})) < most


def test_a_request_that_arrives_too_slowly(bundle: Bundle) -> None:
    async def drops() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    service = make_app(bundle, Limits(seconds=0.05))
    headers = {"Content-Type": "application/json"}
    (answer,) = ask(service, {"content": drops(), "headers": headers})
    refused(answer, "too-slow", "within 0.05 seconds", "send again")


def test_an_answer_that_would_take_too_long(bundle: Bundle) -> None:
    service = make_app(bundle, Limits(seconds=0.001))
    (answer,) = ask(service, {"json": GOOD})
    refused(answer, "busy", "more than 0.001 seconds", "ask again")
    assert answer.headers["retry-after"] == "1"


def test_too_many_requests_at_one_time(bundle: Bundle) -> None:
    service = make_app(bundle, Limits(requests=2, threads=1))
    answers = ask(service, *[{"json": GOOD}] * 8)
    assert [answer.status_code for answer in answers] == [200] * 2 + [503] * 6
    for answer in answers[2:]:
        refused(answer, "busy", "2 requests", "Retry-After")
        assert answer.headers["retry-after"] == "1"
    # Whoever was let in has made room again.
    assert ask(service, {"json": GOOD})[0].status_code == 200


def test_a_melody_that_no_process_can_be_started_for(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_app(bundle)
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "_COMMAND", "raise SystemExit(3)")
        (answer,) = ask(service, {"json": GOOD})
    refused(answer, "busy", "no room", "ask again")
    assert answer.headers["retry-after"] == "1"
    assert "can't start a process for a reader (exit status 3)" in caplog.text
    assert ask(service, {"json": GOOD})[0].status_code == 200


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.system", lambda: "Windows")
    with pytest.raises(UserError, match="serve on Linux or macOS"):
        serve(None, "256.0.0.0", 0, 1)


def test_no_host_is_not_all_hosts() -> None:
    with pytest.raises(UserError, match="host: is empty"):
        serve(None, "", 0, 1)


# ---- a server of its own -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of a server with two workers; it ends without a word when interrupted."""
    program = [sys.executable, "-c", "from study.cli import main; main()"]
    with subprocess.Popen(
        [*program, "serve", "--port", "0", "--workers", "2"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        found = None
        while found is None:
            line = process.stderr.readline()
            assert line, "the server has ended"
            found = re.search(r"answering at (http://127\.0\.0\.1:\d+)$", line)
        yield found[1]
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
        assert process.wait() == 0
        assert "Traceback" not in told


@pytest.mark.slow
def test_workers_answer_with_the_bytes_that_we_would(
    app: FastAPI, served: str, tunes: Path
) -> None:
    request = upload(tunes / "left.mid", tunes / "tune.abc", seed=4)
    (here,) = ask(app, request)
    # Several connections, so that both workers take some.
    answers = [httpx.post(f"{served}/fuse", **request, timeout=60.0) for _ in range(4)]
    assert {answer.content for answer in answers} == {here.content}


@pytest.mark.slow
def test_an_answer_reaches_even_those_who_send_too_much(served: str) -> None:
    files = {"left": ("l.mid", bytes(2**25)), "right": ("r.mid", b"")}
    answer = httpx.post(f"{served}/fuse", files=files, timeout=60.0)
    refused(answer, "too-large")


@pytest.mark.slow
def test_a_port_that_is_taken_and_a_bundle_that_is_none(served: str, tmp_path: Path) -> None:
    port = served.rpartition(":")[2]
    for arguments, words in {
        ("--port", port): "can't be listened to",
        ("--bundle", str(tmp_path)): "no bundle here",
    }.items():
        result = CliRunner().invoke(cli.app, ["serve", *arguments])
        assert words in str(result.exception)
        assert isinstance(result.exception, Exception)


def test_the_help_states_the_limits() -> None:
    told = " ".join((cli.serve.__doc__ or "").split())
    limits = Limits()
    size = f"{limits.body // 2**20} MiB ({limits.json // 2**10} KiB in JSON)"
    assert f"may have {size} and take {limits.seconds:g} seconds" in told
    assert f"a melody {limits.notes:,} notes" in told
    assert f"at most {limits.requests} requests at one time" in told


# ---- a cluster -----------------------------------------------------------------------------------


def load_ray_serve() -> ModuleType:
    spec = spec_from_file_location("ray_serve", ROOT / "configs" / "cluster" / "ray_serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_ray_serve_is_given_the_same_application(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for Ray Serve, which needs more than Ray."""
    builders: list[Callable[[], FastAPI]] = []
    stand_in = ModuleType("ray.serve")
    stand_in.Application = object  # type: ignore[attr-defined]
    stand_in.ingress = lambda build: lambda: builders.append(build)  # type: ignore[attr-defined]
    stand_in.deployment = lambda **_: lambda _: MagicMock()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray.serve", stand_in)
    monkeypatch.setattr("ray.serve", stand_in, raising=False)
    save_bundle(replace(bundle, iterations=7), tmp_path / "own")
    module = load_ray_serve()
    module.app({})
    module.app({"bundle": str(tmp_path / "own")})
    for build, iterations in zip(builders, (bundle.iterations, 7), strict=True):
        found = ask(build(), {}, path="/capabilities")[0].json()
        assert found["iterations"]["default"] == iterations


RAY_SERVE = """
import sys
import httpx
import ray
from ray import serve
ray.init(num_cpus=2, include_dashboard=False)
serve.start(http_options={"port": int(sys.argv[1])})
sys.path.insert(0, "configs/cluster")
import ray_serve
serve.run(ray_serve.app({}))
files = {name: (f"{name}.mid", open(sys.argv[2], "rb").read()) for name in ("left", "right")}
answer = httpx.post(f"http://127.0.0.1:{sys.argv[1]}/fuse", files=files, timeout=60)
sys.stdout.write(answer.content.hex())
serve.shutdown()
"""


@pytest.mark.slow
def test_ray_serve_answers_alike(app: FastAPI, tunes: Path) -> None:
    try:
        import_module("ray.serve")
    except ImportError:
        pytest.skip("needs ray[serve]")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", RAY_SERVE, str(port), str(tunes / "left.mid")]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    shown = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    (here,) = ask(app, upload(tunes / "left.mid", tunes / "left.mid"))
    assert here.content.hex() in shown


# ---- REAPER --------------------------------------------------------------------------------------

LUA = shutil.which("lua5.4") or shutil.which("lua")
needs_lua = pytest.mark.skipif(LUA is None, reason="needs lua5.4")
REAPER = ROOT / "examples" / "reaper_fuse.lua"


def run_lua(program: str) -> bytes:
    assert LUA is not None
    return subprocess.run(
        [LUA, "-"], input=program.encode(), capture_output=True, check=True
    ).stdout


@needs_lua
def test_the_script_for_reaper_writes_midi(tmp_path: Path) -> None:
    notes = [(0, 960, 60), (960, 1440, 60), (1440, 1920, 64), (2880, 200_000, 127)]
    listed = ", ".join(
        f"{{on={on}, off={off}, pitch={pitch}, velocity=90}}" for on, off, pitch in notes
    )
    content = run_lua(f"io.write(dofile({str(REAPER)!r}).make_smf({{{listed}}}, 6, 8, 93.5))")
    (tmp_path / "x.mid").write_bytes(content)
    melody = read_file(tmp_path / "x.mid")
    found = [
        (int(note.onset * 960), int((note.onset + note.duration) * 960), note.pitch)
        for note in melody.notes
    ]
    assert found == notes
    assert melody.tempo == pytest.approx(93.5, abs=1e-3)
    assert melody.bars[0].meter == "6/8"


# Items of crotchets from bar 3 and bar 1 on, at 100 quarter notes per minute.
STAND_IN = """
local quarter = 60 / 100
local items = {{start=8, pitches={76, 74, 72, 71, 69, 67, 65, 64}},
               {start=0, pitches={60, 62, 64, 65, 67, 69, 71, 72}}}
local function shown(...) print(...) end
reaper = {
  CountSelectedMediaItems = function() return #items end,
  GetSelectedMediaItem = function(_, number) return items[number + 1] end,
  GetActiveTake = function(item) return item end,
  TakeIsMIDI = function() return true end,
  GetMediaItemInfo_Value = function(item, name)
    return (name == "D_POSITION" and item.start or #item.pitches) * quarter
  end,
  TimeMap2_timeToQN = function(_, time) return time / quarter end,
  MIDI_GetProjQNFromPPQPos = function(take, ticks) return take.start + ticks / 480 end,
  MIDI_CountEvts = function(take) return true, #take.pitches, 0, 0 end,
  MIDI_GetNote = function(take, number)
    return true, false, false, number * 480, number * 480 + 480, 0, take.pitches[number + 1], 90
  end,
  TimeMap_GetTimeSigAtTime = function() return 4, 4, 100 end,
  GetUserInputs = function() return true, "EDITS,1" end,
  GetResourcePath = function() return "FOLDER" end,
  GetOS = function() return "Other" end,
  ExecProcess = function(command)
    local asked = command:gsub("http://127.0.0.1:8000", "ADDRESS")
    local pipe = io.popen(asked)
    local told = pipe:read("a")
    pipe:close()
    return "0 " .. told
  end,
  SetEditCurPos = function(time) shown("cursor", time) end,
  InsertMedia = function(path, mode) shown("insert", mode, path) end,
  ShowMessageBox = function(message) shown("message", message) end,
}
dofile("SCRIPT")
"""


@pytest.mark.slow
@needs_lua
@pytest.mark.skipif(not Path("/usr/bin/curl").exists(), reason="needs curl")
@pytest.mark.parametrize("edits", ["6", "99999999999999999999"])
def test_the_script_for_reaper_fuses_two_items(
    app: FastAPI, served: str, tmp_path: Path, edits: str
) -> None:
    program = STAND_IN
    for name, value in {
        "EDITS": edits, "FOLDER": str(tmp_path), "ADDRESS": served, "SCRIPT": str(REAPER)
    }.items():  # fmt: skip
        program = program.replace(name, value)
    told = run_lua(program).decode().splitlines()
    left, right = tmp_path / "fuse-left.mid", tmp_path / "fuse-right.mid"
    assert [note.pitch for note in read_file(left).notes][:3] == [60, 62, 64]
    (here,) = ask(app, upload(left, right, edits=edits, seed=1))
    if here.status_code == 200:
        assert told[0].split() == ["cursor", "0.0"]
        (_, mode, path) = told[1].split("\t")
        assert mode == "1"
        assert Path(path).read_bytes() == here.content
    else:
        assert told[0] == f"message\t{here.json()['detail']}"
        assert set(tmp_path.iterdir()) == {left, right}


# ---- a container ---------------------------------------------------------------------------------


def test_the_dockerfile_copies_what_the_wheel_is_built_from() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert len(lines) <= 15
    text = "\n".join(lines).replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if not line.startswith("#")]
    copied = {name for verb, rest in steps if verb == "COPY" for name in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    settings = (ROOT / "pyproject.toml").read_text()
    assert {"cf_core", "evaluation", "study", "configs", "pyproject.toml", "README.md"} <= copied
    for name in re.findall(r'(?:readme|license-files) = \[?"([^"]+)"', settings):
        assert name in copied
    (command,) = [json.loads(rest) for verb, rest in steps if verb == "CMD"]
    assert command[0] in settings
    assert CliRunner().invoke(cli.app, [*command[1:], "--help"]).exit_code == 0
    (run,) = [rest for verb, rest in steps if verb == "RUN"]
    assert "'.[serve]'" in run
    assert "${INDEX:+--extra-index-url" in run
