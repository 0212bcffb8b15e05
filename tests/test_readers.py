import io
import os
import tracemalloc
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cf_core import readers
from cf_core.errors import UserError
from cf_core.melody import Bar, Melody, Note, grid
from cf_core.midi import Chunk, parse
from cf_core.readers import Rejected, find_songs, read_file, read_melodies, read_song

DATA = os.environ.get("CF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="CF_DATA names no folder of corpora")


def test_read_file_takes_the_first_readable_tune_of_a_book(tmp_path: Path) -> None:
    path = tmp_path / "book.abc"
    tunes = ["X:1\nL:1/4\nM:4/4\nK:C\n" + music for music in ("z4|z4|", "D4|E4|", "C4|C4|")]
    path.write_text("\n\n".join(tunes))
    assert pitches(read_file(path)) == [D, E]
    path.write_text("\n\n".join([tunes[0]] * 2))
    with pytest.raises(UserError, match="no notes"):
        read_file(path)


def test_a_file_name_that_is_no_text_gives_an_id_that_is() -> None:
    name = b"caf\xe9.abc".decode(errors="surrogateescape")
    assert only(name, (HEAD + "C4|D4|\n").encode()).id == "caf\\udce9"


def test_warnings_of_the_caller_are_not_silenced_between_songs() -> None:
    before = warnings.filters[:]
    songs = read_melodies("a.abc", (HEAD + "C4|D4|\n").encode())
    next(songs)
    assert warnings.filters == before


def test_read_file_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "tune.abc"
    path.write_text(HEAD + "C4|D4|\n")
    assert pitches(read_file(path)) == [C, D]
    (tmp_path / "two.xml").write_bytes(score({"Voice": SONG, "Piano": SONG}))
    (tmp_path / "bad.mid").write_bytes(b"MThd")
    for name, message in {
        "two.xml": "several parts .*1 'Voice', 2 'Piano'.*name one",
        "bad.mid": "unreadable",
        "none.mid": "no such file",
        "notes.txt": "no such file",
        "x" * 300: "no such file",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            read_file(tmp_path / name)
        assert name in str(error.value)


def collection(path: Path) -> None:
    (path / "a").mkdir(parents=True)
    (path / "b").mkdir()
    for name, music in {"a/x.abc": "C4|D4|", "b/x.abc": "E4|G4|", "b/y.abc": "G4|G4|"}.items():
        (path / name).write_text(HEAD + music + "\n")
    (path / "b" / "z.mid").write_bytes(b"not midi")
    (path / "b" / ".hidden.abc").write_text("")
    (path / "readme.txt").write_text("not a melody")


def read_all(source: Path, include: str | None = None) -> list[Melody | Rejected]:
    songs = find_songs(source, include)
    return [song if isinstance(song, Rejected) else read_song(song) for song in songs]


def test_folders_and_zip_archives_read_alike(tmp_path: Path) -> None:
    collection(tmp_path / "all")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in (tmp_path / "all").rglob("*.*"):
            archive.write(file, f"top/{file.relative_to(tmp_path / 'all')}")
        archive.writestr("../../escape.abc", HEAD + "A4|B4|\n")
    folder = read_all(tmp_path / "all")
    assert [(s.id, getattr(s, "reason", None)) for s in folder] == [
        ("x", None),
        ("x", None),
        ("y", None),
        ("z", "unreadable"),
    ]
    archived = read_all(tmp_path / "all.zip")
    assert archived[0].id == "escape"
    assert archived[1:] == folder
    assert not list(tmp_path.parent.glob("escape.abc"))
    chosen = read_all(tmp_path / "all.zip", include="b/*.abc")
    assert [pitches(s) for s in chosen if isinstance(s, Melody)] == [[E, G], [G, G]]


def test_a_damaged_member_of_an_archive_is_one_rejection(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.abc", HEAD + "C4|D4|\n")
        archive.writestr("b.abc", HEAD + "E4|G4|\n")
    content = path.read_bytes().replace(b"C4|D4", b"C4|E4")
    path.write_bytes(content)
    first, second = read_all(path)
    assert isinstance(first, Rejected)
    assert isinstance(second, Melody)


def test_collections_that_hold_nothing(tmp_path: Path) -> None:
    collection(tmp_path / "all")
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    with zipfile.ZipFile(tmp_path / "later.zip", "w") as archive:
        archive.writestr("a.abc", HEAD)
    later = (tmp_path / "later.zip").read_bytes()
    central = later.index(b"PK\1\2")
    (tmp_path / "later.zip").write_bytes(later[: central + 6] + b"\xff" + later[central + 7 :])
    (tmp_path / "empty").mkdir()
    for name, include, message in [
        ("missing", None, "no such file or folder"),
        ("empty", None, "no file there"),
        ("all", "c/*.abc", r"no file named 'c/\*.abc'"),
        ("all", "", "include: '' matches no file"),
        ("broken.zip", None, "zip"),
        ("later.zip", None, "not a readable zip archive"),
        ("x" * 300, None, "no such file or folder"),
    ]:
        with pytest.raises(UserError, match=message):
            find_songs(tmp_path / name, include)


# ---- real files --------------------------------------------------------------------------------


def member(archive: str, ending: str) -> bytes:
    with zipfile.ZipFile(Path(str(DATA), archive)) as opened:
        return opened.read(next(name for name in opened.namelist() if name.endswith(ending)))


NOTTINGHAM = "nottingham/nottingham-dataset.zip"


@needs_data
def test_a_tune_with_repeats_and_endings_is_the_same_in_midi_and_abc() -> None:
    song = only("a.mid", member(NOTTINGHAM, "MIDI/ashover12.mid"))
    book = member(NOTTINGHAM, "ABC_cleaned/ashover.abc")
    tune = only("a.abc", b"X:" + book.split(b"X:")[12])
    played = [bar.tokens for bar in grid(tune)]
    # The MIDI plays the first part once more, and fills up the first and last bar with rests.
    assert len(played) == 25
    assert played[1:24] == [bar.tokens for bar in grid(song)][9:32]


@needs_data
def test_double_stops_of_a_real_tune_reject_bars_only() -> None:
    song = only("a.mid", member(NOTTINGHAM, "MIDI/reelsd-g1.mid"))
    reasons = Counter(bar.reason for bar in grid(song))
    assert reasons["chord"] == 24
    assert reasons[None] > 10


@needs_data
def test_a_real_pickup_is_found_by_its_accents_and_the_chord_track_is_left() -> None:
    archive = "cre/cre-midi-volumes-1-3.zip"
    song = only("a.mid", member(archive, "SpikeIslandLassesreelThe.mid"))
    assert pitches(song)[:6] == [74, 71, 72, 69, 67, 64]
    assert song.bars[0].length == 1
    assert song.bars[1].start == 1
    assert grid(song)[1].reason is None


@needs_data
def test_a_song_is_the_same_in_musicxml_and_the_midi_made_from_it() -> None:
    lieder = "openscore-lieder/openscore-lieder-{}.zip"
    name = "lc6583512"
    score_song = only(f"{name}.mxl", member(lieder.format("mxl"), f"{name}.mxl"), "Voice")
    midi_song = only(f"{name}.mid", member(lieder.format("vocal-midi"), f"{name}.mid"))
    both = list(zip(grid(score_song), grid(midi_song), strict=True))
    assert len(both) == 41
    for bar, same in both:
        # The MIDI has a time signature for every short bar and only the top notes of chords.
        assert bar.tokens == same.tokens or bar.reason in ("short bar", "chord")
    assert sum(bar.reason is None for bar, _ in both) > 35
    several = rejection(f"{name}.mxl", member(lieder.format("mxl"), f"{name}.mxl"))
    assert several.detail == "1 'Voice', 2 'Piano'"
