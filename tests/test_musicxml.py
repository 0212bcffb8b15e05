import io
import tracemalloc
import zipfile
from fractions import Fraction

import pytest

from cf_core.melody import Note, grid
from tests.melodies import A, B, C, D, E, F, G, lengths, only, pitches, rejection, score, xml_note


SONG = [
    '<direction><sound tempo="96"/></direction>' + xml_note("G", 4, 1),
    xml_note("A", 5, 0, inside="<grace/>")
    + xml_note("C", 4, 2)
    + xml_note("D", 4, 2, after='<tie type="start"/>'),
    xml_note("D", 4, 2, after='<tie type="stop"/>') + xml_note("E", 4, 2),
]


def test_musicxml_pickup_ties_grace_notes_and_tempo() -> None:
    song = only("a.musicxml", score({"Voice": SONG}))
    assert song.notes == (
        Note(Fraction(0), Fraction(1, 2), G),
        Note(Fraction(1, 2), Fraction(1), C),
        Note(Fraction(3, 2), Fraction(2), D),
        Note(Fraction(7, 2), Fraction(1), E),
    )
    assert lengths(song) == [Fraction(1, 2), 2, 2]
    assert (song.title, song.tempo) == ("A Song", 96)
    assert grid(song)[2].held == D


def test_a_part_must_be_named_where_there_are_several() -> None:
    data = score({"Voice\n  (high)": SONG, "Piano": [xml_note("C", 3, 4)] * 3})
    several = rejection("a.xml", data)
    assert (several.reason, several.detail) == ("several parts", "1 'Voice (high)', 2 'Piano'")
    assert pitches(only("a.xml", data, "Voice (high)")) == [G, C, D, E]
    piano = only("a.xml", data, "2")
    assert (pitches(piano), piano.tempo) == ([48] * 3, 96)
    assert rejection("a.xml", data, "Oboe").reason == "no such part"


def test_musicxml_repeats_are_played_out() -> None:
    end = '<barline location="right"><repeat direction="backward"/></barline>'
    measures = [xml_note("C", 4, 4), xml_note("D", 4, 4) + end, xml_note("E", 4, 4)]
    assert pitches(only("a.xml", score({"Voice": measures}))) == [C, D, C, D, E]
    many = end.replace("/></b", ' times="1000000000"/></b')
    measures = [xml_note("C", 4, 4), xml_note("D", 4, 4) + many]
    assert len(only("a.xml", score({"Voice": measures})).bars) <= 8


def test_musicxml_chords_reject_their_bar() -> None:
    chord = xml_note("C", 4, 4) + xml_note("E", 4, 4, inside="<chord/>")
    song = only("a.xml", score({"Voice": [xml_note("C", 4, 4), chord, xml_note("D", 4, 4)]}))
    assert [bar.reason for bar in grid(song)] == [None, "chord", None]


def compressed(content: bytes, name: str = "score.xml", padding: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        root = f'<container><rootfiles><rootfile full-path="{name}"/></rootfiles></container>'
        archive.writestr("META-INF/container.xml", root + " " * padding)
        archive.writestr(name, content)
    return stream.getvalue()


def test_compressed_musicxml() -> None:
    plain = only("a.xml", score({"Voice": SONG}))
    assert only("a.mxl", compressed(score({"Voice": SONG}), "../../etc/score.xml")) == plain


def test_hostile_musicxml_is_refused() -> None:
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
    assert rejection("a.xml", score({"Voice": SONG}, bomb)).reason == "unreadable"
    assert rejection("a.mxl", compressed(bytes(2**25 + 9))).reason == "too large"
    assert rejection("a.mxl", compressed(b"<html/>")).reason == "unreadable"
    assert rejection("a.mxl", compressed(score({"Voice": SONG}))[:200]).reason == "unreadable"
    assert rejection("a.xml", score({"Voice": SONG})[:-30]).reason == "unreadable"


def test_a_bomb_beside_the_score_is_not_unpacked() -> None:
    data = compressed(score({"Voice": SONG}), padding=2**26)
    only("a.mxl", compressed(score({"Voice": SONG})))
    tracemalloc.start()
    try:
        only("a.mxl", data)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
