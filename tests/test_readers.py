import os
import warnings
import zipfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from cf_core.errors import MelodyError
from cf_core.grid import to_grid
from cf_core.melody import Melody
from cf_core.readers import (
    Rejected,
    count_passed_over,
    find_songs,
    read_file,
    read_melodies,
    read_song,
)
from tests import oracles
from tests.melodies import HEAD, C, D, E, G, only, pitches, rejection, score, xml_note

DATA = os.environ.get("CF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="CF_DATA names no folder of corpora")


def test_read_file_takes_the_first_readable_tune_of_a_book(tmp_path: Path) -> None:
    path = tmp_path / "book.abc"
    tunes = ["X:1\nL:1/4\nM:4/4\nK:C\n" + music for music in ("z4|z4|", "D4|E4|", "C4|C4|")]
    path.write_text("\n\n".join(tunes))
    assert pitches(read_file(path)) == [D, E]
    path.write_text("\n\n".join([tunes[0]] * 2))
    with pytest.raises(MelodyError, match="no notes"):
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
    voice = [xml_note("C", 4, 4)] * 2
    (tmp_path / "two.xml").write_bytes(score({"Voice": voice, "Piano": voice}))
    (tmp_path / "bad.mid").write_bytes(b"MThd")
    (tmp_path / "jig.abc").write_text("X:1\nL:1/8\nK:G\nG|dBG GBd|dBG GFG|AFD c2|\n")
    (tmp_path / "album.mid").mkdir()
    os.mkfifo(tmp_path / "pipe.mid")
    for name, message in {
        "two.xml": "several parts .*1 'Voice', 2 'Piano'.*name one",
        "bad.mid": "unreadable",
        "jig.abc": "no complete bar .2 of 4 bars are 3 quarter notes long, but 4/4 has 4: correct",
        "none.mid": "no such file",
        "album.mid": "is not a file",
        "pipe.mid": "is not a file",
        "notes.txt": "no such file",
        "x" * 300: "no such file",
    }.items():
        with pytest.raises(MelodyError, match=message) as error:
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


def test_files_passed_over_by_their_names_are_counted(tmp_path: Path) -> None:
    collection(tmp_path / "all")
    assert count_passed_over(tmp_path / "all") == {".txt": 1, ".abc": 1}
    assert count_passed_over(tmp_path / "all", "b/*.abc") == {".txt": 1, ".abc": 2, ".mid": 1}
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.mkdir("empty.d")
        for name in ("a.abc", "LICENSE", "b.PDF"):
            archive.writestr(name, HEAD)
    assert count_passed_over(tmp_path / "all.zip") == {"LICENSE": 1, ".pdf": 1}


def test_names_in_archives_are_utf_8_where_they_can_be(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("F\xfcr.abc", HEAD + "C4|D4|\n")
    for content in (path.read_bytes(), path.read_bytes().replace(b"\x14\0\0\x08", b"\x14\0\0\0")):
        path.write_bytes(content)
        assert [song.id for song in read_all(path)] == ["F\xfcr"]


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
        ("empty", None, "holds no file that ends in"),
        ("all", "c/*.abc", r"no file named 'c/\*.abc'"),
        ("all", "", "include: '' matches no file"),
        ("broken.zip", None, "zip"),
        ("later.zip", None, "not a readable zip archive"),
        ("x" * 300, None, "no such file or folder"),
    ]:
        with pytest.raises(MelodyError, match=message):
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
    played = [bar.tokens for bar in to_grid(tune)]
    # The MIDI plays the first part once more, and fills up the first and last bar with rests.
    assert len(played) == 25
    assert played[1:24] == [bar.tokens for bar in to_grid(song)][9:32]


@needs_data
def test_double_stops_of_a_real_tune_reject_bars_only() -> None:
    song = only("a.mid", member(NOTTINGHAM, "MIDI/reelsd-g1.mid"))
    reasons = Counter(bar.reason for bar in to_grid(song))
    assert reasons["chord"] == 24
    assert reasons[None] > 10


@needs_data
def test_a_real_pickup_is_found_by_its_accents_and_the_chord_track_is_left() -> None:
    archive = "cre/cre-midi-volumes-1-3.zip"
    song = only("a.mid", member(archive, "SpikeIslandLassesreelThe.mid"))
    assert pitches(song)[:6] == [74, 71, 72, 69, 67, 64]
    assert song.bars[0].length == 1
    assert song.bars[1].start == 1
    assert to_grid(song)[1].reason is None


@needs_data
def test_a_song_is_the_same_in_musicxml_and_the_midi_made_from_it() -> None:
    lieder = "openscore-lieder/openscore-lieder-{}.zip"
    name = "lc6583512"
    score_song = only(f"{name}.mxl", member(lieder.format("mxl"), f"{name}.mxl"), "Voice")
    midi_song = only(f"{name}.mid", member(lieder.format("vocal-midi"), f"{name}.mid"))
    both = list(zip(to_grid(score_song), to_grid(midi_song), strict=True))
    assert len(both) == 41
    # The MIDI has a time signature for every short bar and only the top notes of chords, and of the
    # last one a cue note.
    differing = [
        number
        for number, (bar, same) in enumerate(both)
        if bar.tokens != same.tokens and bar.reason not in ("short bar", "chord")
    ]
    assert differing == [40]
    assert sum(bar.reason is None for bar, _ in both) > 35
    several = rejection(f"{name}.mxl", member(lieder.format("mxl"), f"{name}.mxl"))
    assert several.detail == "1 'Voice', 2 'Piano, staff 1', 3 'Piano, staff 2'"


FAULTS = {
    "01a_abc_accidental_holds_for_bar.abc": [66, 67, 69, 66, 67, 69, 65, 67],
    "03_abc_letter_before_colon_colon.abc": 8,
    "02a_abc_repeat_ends_without_start.abc": 8,
    "02b_musicxml_repeat_ends_without_start.musicxml": 8,
    "04_musicxml_styled_chord_symbol.musicxml": [
        60,
        62,
        64,
        65,
        67,
        65,
        64,
        62,
        64,
        60,
        62,
        59,
        60,
    ],
    "05a_midi_repeated_pitch_on_before_off.mid": [60, 60, 60, 60, 62, 62, 64],
    "06a_abc_one_voice_declared_and_used.abc": 4,
    "06b_abc_inline_voices_concatenated.abc": "several parts",
    "07a_abc_free_text_read_as_notes.abc": 4,
    "08a_abc_inline_key_ignored.abc": [
        *(65, 67, 69, 71, 72, 66, 67, 69, 71, 73, 70, 72, 70, 69, 71, 72, 71, 69)
    ],
    "08b_abc_inline_length_ignored.abc": 3,
    "08d_abc_K_exp.abc": [66, 67, 69, 70, 72, 63, 67, 69, 70, 72],
    "09_musicxml_transposing_part_written_pitch.musicxml": [
        *(58, 60, 62, 63, 65, 63, 62, 60, 62, 58, 60, 57, 58)
    ],
    "10_musicxml_cue_element_not_dropped.musicxml": [
        *(62, 64, 65, 67, 65, 64, 62, 64, 60, 62, 59, 60)
    ],
    "11a_abc_multi_measure_rest_dropped.abc": 5,
    "12_abc_H_fermata_swallows_note.abc": [
        *(60, 62, 64, 65, 67, 65, 64, 62, 60, 62, 64, 65, 67, 65, 64, 62)
    ],
    "13a_midi_utf8_part_name.mid": 4,
    "14a_mxl_utf8_name_without_flag.mxl": 4,
    "15_musicxml_utf16.musicxml": 4,
    "16a_musicxml_additive_meter.musicxml": 2,
    "17a_musicxml_metronome_ignored.musicxml": 4,
    "17c_midi_late_tempo_taken_as_start.mid": 12,
    "18a_midi_legato_overlap_10_ticks.mid": 4,
    "18c_musicxml_two_staves_dead_end.musicxml": "several parts",
    "18d_musicxml_unpitched_counts_as_song.musicxml": "no notes",
}
"""What is right: the pitches, the number of bars (whole, on the grid), or a reason."""


@needs_data
@pytest.mark.parametrize("name", FAULTS)
def test_files_that_were_once_misread(name: str) -> None:
    expected = FAULTS[name]
    data = Path(str(DATA), "faults", name).read_bytes()
    if isinstance(expected, str):
        assert rejection(name, data).reason == expected
        return
    song = only(name, data)
    bars = to_grid(song)
    assert (pitches(song) if isinstance(expected, list) else len(bars)) == expected
    assert {bar.reason for bar in bars} == {None}
    tempos = {"17a": 76, "06a": 100}
    assert song.tempo == tempos.get(name[:3], 120)


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize(
    ("archive", "every"),
    [
        ("nottingham/nottingham-dataset.zip", 20),
        ("cre/cre-midi-volumes-1-3.zip", 5),
        ("openscore-lieder/openscore-lieder-vocal-midi.zip", 10),
    ],
)
def test_midi_files_are_read_as_symusic_reads_them(archive: str, every: int) -> None:
    with zipfile.ZipFile(Path(str(DATA), archive)) as opened:
        names = [name for name in opened.namelist() if name.endswith(".mid")][::every]
        differing = [name for name in names if not oracles.as_symusic(opened.read(name))]
    assert len(names) > 100
    assert differing == []


@pytest.mark.slow
@needs_data
def test_scores_are_read_as_music21_reads_them() -> None:
    names = oracles.scores()[::130]
    ours, same = zip(*(oracles.as_music21(name) for name in names), strict=True)
    assert sum(ours) > 1_000
    assert sum(same) >= 0.99 * sum(ours)


@pytest.mark.slow
@needs_data
def test_tunes_of_nottingham_are_read_as_they_were_when_held_against_abc2midi() -> None:
    digests = oracles.digests(oracles.nottingham())
    assert len(digests) == 1034
    whole = sha256("".join(digests[name] for name in sorted(digests)).encode())
    assert whole.hexdigest()[:16] == "2ff47090a809448d"
