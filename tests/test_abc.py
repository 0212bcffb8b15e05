"""It is long, since every feature of ABC has a tune."""

import json
from fractions import Fraction

import pytest

from cf_core.grid import to_grid
from cf_core.ingest import read_builtin_tunes
from cf_core.melody import Melody, Note
from cf_core.readers import read_melodies
from cf_core.readers.limits import MAX_BARS, MAX_TUNE
from tests import oracles
from tests.melodies import HEAD, A, B, C, D, E, F, G, lengths, only, pitches, rejection
from tests.oracles import DIGESTS


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        ("C4|D4|]", [C, D]),
        ("|:C4|D4:|E4|]", [C, D, C, D, E]),
        ("C4|D4::E4|G4:|", [C, D, C, D, E, G, E, G]),
        ("C4|D4:|:E4|G4:|", [C, D, C, D, E, G, E, G]),
        ("|:C4|1D4:|2E4|G4|]", [C, D, C, E, G]),
        ("|:C4|:D4|:E4|]", [C, D, E]),
        ('^C4|C4|{g}D4|"Am"E4|', [61, C, D, E]),
    ],
)
def test_abc_as_played(music: str, expected: list[int]) -> None:
    song = only("a.abc", (HEAD + music + "\n").encode())
    assert pitches(song) == expected
    assert lengths(song) == [4] * len(expected)
    assert (song.id, song.title) == ("a", "A Tune")


def test_abc_rhythm_ties_and_key() -> None:
    text = "X:1\nM:2/4\nL:1/8\nQ:1/4=90\nK:G\nF>G A-A|A2 (3Bcd|\n"
    song = only("a.abc", text.encode())
    third = Fraction(1, 3)
    assert [(n.pitch, n.duration) for n in song.notes] == [
        (66, Fraction(3, 4)),
        (G, Fraction(1, 4)),
        (A, Fraction(1)),
        (A, Fraction(1)),
        (B, third),
        (72, third),
        (74, third),
    ]
    assert song.tempo == 90


def test_a_note_tied_over_the_bar_line_is_one_note() -> None:
    song = only("a.abc", (HEAD + "C4-|C4|D4|\n").encode())
    assert song.notes == (Note(Fraction(0), Fraction(8), C), Note(Fraction(8), Fraction(4), D))
    song = only("a.abc", (HEAD + "C4-|C4-|C4|C4|\n").encode())
    assert song.notes == (Note(Fraction(0), Fraction(12), C), Note(Fraction(12), Fraction(4), C))


def test_a_bar_split_at_a_repeat_sign_is_one_bar() -> None:
    song = only("a.abc", (HEAD + "|:G|C4|D3:|G|E4|C3|]\n").encode())
    assert pitches(song) == [G, C, D, G, C, D, G, E, C]
    assert lengths(song) == [1, 4, 4, 4, 4, 4, 3]


def test_double_stops_reject_the_bar_not_the_tune() -> None:
    song = only("a.abc", (HEAD + "C4|[CE]4|D4|\n").encode())
    assert [bar.reason for bar in to_grid(song)] == [None, "chord", None]


def test_abc_books_number_their_tunes() -> None:
    book = "M:4/4\nL:1/4\n\nX:1\nK:C\nC4|D4|\n\nX:007\nT:Other\nK:C\nE4|G4|\n"
    songs = [s for s in read_melodies("book.abc", book.encode()) if isinstance(s, Melody)]
    assert [(s.id, pitches(s)) for s in songs] == [("book:1", [C, D]), ("book:7", [E, G])]
    joined = book + book.partition("\n\n")[2] * 2
    found = [song.id for song in read_melodies("book.abc", joined.encode())]
    assert found == ["book:1", "book:7", "book:1.2", "book:7.2", "book:1.3", "book:7.3"]


def test_abc_that_gives_no_melody() -> None:
    assert rejection("a.abc", (HEAD + "z4|z4|\n").encode()).reason == "no notes"
    assert rejection("a.abc", b"\xff\xfe not abc").reason in ("unreadable", "no notes")
    room = MAX_TUNE - len(HEAD)
    assert pitches(only("a.abc", (HEAD + f"C4|D4|\n{'%':{room - 8}}").encode())) == [C, D]
    assert rejection("a.abc", (HEAD + f"C4|D4|\n{'%':{room - 7}}").encode()).reason == "too large"
    assert len(only("a.abc", (HEAD + "C D E F |\n" * 1_000).encode()).bars) == 1_000
    apart = rejection("a.abc", (HEAD + "\nDo you know | this tune?\n").encode())
    assert (apart.reason, "remove the line" in apart.detail) == ("no notes", True)
    assert rejection("a.abc", (HEAD + "\nT:Next\nK:C\nC4|\n").encode()).detail == ""
    voices = (HEAD + "V:1\nC4|D4|\nV:2\nE4|G4|\n").encode()
    assert rejection("a.abc", voices).reason == "several parts"
    assert pitches(only("a.abc", voices, "2")) == [E, G]


@pytest.mark.parametrize(
    "body",
    [
        "\nC4|D4|\n\nE4|\n",
        "\n \n% bar 1\nC4|D4|\n\nE4|\n",
        "Q:1/4=90\n\n+pp+ C4|!trill!D4|\n\nand words\n",
        '\nV:1\n[V:1] "for two times"C4|D4|\n\nE4|\n',
        "\n[V:1]\nC4|D4|\n\nE4|\n",
        "\n[|\nC4|D4|\n\nE4|\n",
        "\nZ|\nC4|D4|\n\nE4|\n",
    ],
)
def test_an_empty_line_before_the_music_ends_no_tune(body: str) -> None:
    assert pitches(only("a.abc", (HEAD + body).encode())) == [C, D]


def abc(music: str, *fields: str, meter: str = "4/4", key: str = "C") -> Melody:
    """A tune of quarter notes, unless its fields say otherwise."""
    head = f"X:1\nT:A Tune\nM:{meter}\nL:1/4\n" + "".join(f"{field}\n" for field in fields)
    return only("a.abc", f"{head}K:{key}\n{music}\n".encode())


def letters(song: Melody) -> str:
    """The notes played, as they are called between middle C and the B above."""
    return "".join(
        {60: "C", 62: "D", 64: "E", 65: "F", 67: "G", 69: "A", 71: "B"}[p] for p in pitches(song)
    )


# ---- repeats, endings and jumps


@pytest.mark.parametrize(
    ("music", "order"),
    [
        ("C4|D4:|E4|F4:|", "CDCDEFEF"),  # no start: back to the last end
        ("C4|D4||E4|F4:|", "CDEFEF"),  # or to the last double bar line
        ("C4|D4|]E4|F4:|", "CDEFEF"),
        ("|:C4|D4||E4|F4:|", "CDEFCDEF"),  # but not past an open start
        ("C4::D4||E4:|F4|]", "CCDEDEF"),
        ("C4:||:D4:|", "CCDD"),
        ("C4:|:D4:|", "CCDD"),
        ("C4: |D4:|", "CCDD"),
        ("|::C4::|D4|]", "CCCD"),
        ("|:|:C4:|D4|]", "CCD"),
        ("C4|[1D4:|[2E4||F4|[1G4:|[2A4|]", "CDCEFGFA"),  # a second strain with endings
        ("C4|1D4:|2E4|F4|G4:|", "CDCEFGFG"),  # an ending is as long as the one before it
        ("C4|1D4|E4:|2F4|G4:|A4|]", "CDECFGA"),
        ("|:C4|[1,3D4:|[2E4:|[4F4|]", "CDCECDCF"),
        ("|:C4|[1-3D4:|[4E4|]", "CDCDCDCE"),
        ("|:C4|[1,3D4:|[2E4:|F4|", "CDCECDF"),  # the third time ends in the first ending
        ("|:C4|[1,4D4:|[2E4:|[3F4:|G4|G4:|", "CDCECFCDGGGG"),
        ('|:C4|["1"D4:|["2"E4|]', "CDCE"),
        ('|:C4|["1st time"D4:|["2nd time"[EE]4|]', "CDCE"),
        ("|:C4|D4[|]E4:|F4|]", "CDECDEF"),  # an invisible bar line
        ("C4|D4[|]E4|F4:|", "CDEFCDEF"),
        ("|:C4|D4[|]:|E4|]", "CDCDE"),
        ("C4|!Segno!D4|E4!D.S.!|]", "CDEDE"),
        ("|:C4|1D4:|E4|]", "CDCE"),
        ("|:C4[1D4:|[2E4|]F4|]", "CDCEF"),
        ("|: C4 | 1 D4 :| 2 E4 |] F4 |]", "CDCEF"),
        ("C4|:D4|1E4|2F4:||:G4|1A4|2B4:||", "CDEDFGAGB"),  # no sign between two endings
        ('C4|1D4"^D.C."|2E4|]', "CDCE"),
        ("|:C4|1D4|2E4|]F4|]", "CDCEF"),  # no sign at all
        ("|:C4|1D4|2E4||F4|G4:|", "CDCEFGFG"),
        ("|:C4|D4|1E4||2F4||G4:|A4|]", "CDEGCDFGA"),  # after both endings, one end
        ("|:C4|D4|1E4|2F4|G4:|A4|]", "CDEGCDFGA"),
        ("|:C4|[1D4|[2E4|[1F4|G4:|[2A4|B4|]", "CDFGCEAB"),  # two rows in one
        ("|:C4|1D4:|2E4|F4|1G4:|2A4|]", "CDCEFGFA"),  # two strains, no sign between them
        ("|:C4|D4|1E4||F4|G4:|2A4|B4|]", "CDEFGCDAB"),  # an ending longer than its bracket
        ("C4|D4::E4|F4::|]", "CDCDEFEF"),  # no sign "|::" asks for three times
        ("C4|D4: :E4:|", "CDCDEE"),
        ("C4|D4| : E4|F4:|", "CDEFEF"),  # a bar line and, apart from it, the dots
        ("|:C4| :D4:|E4|]", "CDCDE"),  # where a repeat is open they are a slip
        ("C4|[:D4|E4:]F4|]", "CDEDEF"),  # thick bar lines without a thin one
        ("C4|[|:D4|E4:]|F4|]", "CDEDEF"),
        ("|:C4|1, 2 D4:|3 E4|]", "CDCDCE"),
        ("|:C4|[1 - 2 D4:|[3 E4|]", "CDCDCE"),
        ("A4||C4||1D4:||2E4|]", "ACDCE"),  # no strain begins with a first ending
        ("C4|D4!D.C.!|", "CDCD"),
        ("C4|D4!fine!|E4|F4!D.C.!|", "CDEFCD"),
        ("|:C4|D4:|E4!D.C.!|]", "CDCDECDE"),  # no repeats after the jump
        ("|:C4|1D4:|2E4!fine!|F4!dacapo!|]", "CDCEFCE"),
        ("C4|!segno!D4|E4!D.S.!|]", "CDEDE"),
        ("C4|SD4|E4!D.S.!|]", "CDEDE"),
        ("C4!segno!|D4|E4!D.S.!|]", "CDEDE"),  # the sign stands over the bar line
        ('C4"^Segno"|D4|E4!D.S.!|]', "CDEDE"),
        ("C4|D4!dacoda!|E4!D.C.!|!coda!F4|]", "CDECDF"),
        ("C4|D4!coda!|E4!D.S.al coda!|]!coda!F4|]", "CDEF"),  # there is no sign to go back to
        ("!segno!C4|D4O|E4!D.S.!|OF4|]", "CDECDF"),
        ('C4|D4"^Fine"|E4|F4"^D.C. al Fine"|]', "CDEFCD"),
        ("C4|OD4|E4!D.C.!|OF4|]", "CDECF"),  # the first of two signs means "to the coda"
        ('C4|"^D C sharp"D4|', "CD"),
        ('C4|D4"D.C."|]', "CD"),  # a chord symbol is no annotation
        ("C4|D4|] !D.C.!", "CDCD"),
        ('C4|D4|"^Fine"||E4|F4|"^D.C. al Fine"|]', "CDEFCD"),  # signs between two bar lines
        ("C4|D4||!D.C.!||E4|]", "CDCDE"),
        ("C4|!segno!D4|!d.s. al fine!E4|]", "CDEDE"),
        ("|:C4:|!fine!|:D4:|!D.C.!|", "CCDDC"),
        ("|:C4|1D4!fine!:|2E4|]F4!D.C.!|", "CDCEFCD"),  # in an ending that is else not taken
        ("|:C4|1D4!fine!:|2E4!fine!|]F4!D.C.!|", "CDCEFCE"),
        ("|:C4|1D4!dacoda!:|2E4|]F4!D.C.!|]!coda!G4|", "CDCEFCDG"),
        ("|:C4|1D4!dacoda!:|2E4|]F4!D.C.!|", "CDCEFCEF"),  # there is no coda
    ],
)
def test_the_order_of_play(music: str, order: str) -> None:
    song = abc(music)
    assert letters(song) == order
    assert lengths(song) == [4] * len(order)


@pytest.mark.parametrize(
    ("parts", "order"), [("AABA", "CCDC"), ("A2.B", "CCD"), ("(AB)2", "CDCD"), ("BX", "D")]
)
def test_parts_are_played_in_the_order_of_the_header(parts: str, order: str) -> None:
    assert letters(abc("P:A\nC4|\nP:B\nD4|\n", f"P:{parts}")) == order


def test_repeats_within_parts_are_played() -> None:
    assert letters(abc("P:A\nC4:|\nP:B\nD4|E4:|\n", "P:ABA")) == "CCDEDECC"
    printed = 'P:A\nC4|"^Fine"D4|]\nP:B\nE4|F4 "^D.C."|\n'
    assert letters(abc(printed, "P:ABA")) == "CDEFCD"
    assert letters(abc(printed)) == "CDEFCD"


@pytest.mark.slow
def test_very_many_repeats_are_played_once_more_each() -> None:
    assert len(abc("|:C4:|" * 400).bars) == 800
    with_times = abc(":::C4:::|" * 100 + "D4|")
    assert len(with_times.bars) == 401
    nested = "P:A\nC4|\n"
    song = only("a.abc", f"{HEAD[:-4]}P:{'(' * 9 + 'A' + ')9' * 9}\nK:C\n{nested}".encode())
    assert len(song.bars) <= MAX_BARS


# ---- notes


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        ("^FGFG|F4|", [66, 67, 66, 67, 65]),
        ("^Ff,f'F,|", [66, 66, 90, 54]),  # in all octaves
        ("^F_F=FF|", [66, 64, 65, 65]),
        ("^^F__FFz|", [67, 63, 63]),
        ("^F3F-|F2F2|F4|", [66, 66, 65, 65]),
        ("^F4-|F4|F4|", [66, 65]),  # a tied note keeps its accidental, the next one does not
        ("^F4|[1F4:|[2F4|]", [66, 65, 66, 65]),
        ("^F2[K:C]F2|", [66, 65]),  # a new key ends them
        ("^F2[K:bass]F2|", [66, 66]),
        ("^C4&CDEz|", [61, 60, 62, 64]),
        ("C,,4|c''4|B,,4|", [36, 96, 47]),
        ("c\u2019\u20194\u2013|c''4|", [96]),  # as a word processor writes it
        ("^!1!F_!2!!tenuto!B=!3!FF|", [66, 70, 65, 65]),  # a decoration between them
        ("^!1!^F_!2!_BBF|", [66, 70, 70, 66]),
        ("^3/2F_3/4B^1/4F_/B|", [67, 70, 65, 71]),  # microtones, to the nearest semitone
    ],
)
def test_accidentals(music: str, expected: list[int]) -> None:
    assert pitches(abc(music)) == expected


@pytest.mark.parametrize(
    ("key", "music", "expected"),
    [
        ("D", "FCGz", [66, 61, 67]),
        ("Am", "FCGz", [65, 60, 67]),
        ("F#m", "FCGD", [66, 61, 68, 62]),
        ("Bb", "BEAz", [70, 63, 69]),
        ("D dorian", "FCBz", [65, 60, 71]),
        ("Ddor", "FCBz", [65, 60, 71]),
        ("AMix", "FCGz", [66, 61, 67]),
        ("E phrygian", "FCGz", [65, 60, 67]),
        ("F lydian", "BEAz", [71, 64, 69]),
        ("B Locrian", "BEAz", [71, 64, 69]),
        ("G minor", "BEAz", [70, 63, 69]),
        ("A minor =c ^g", "FCGz", [65, 60, 68]),
        ("D exp _b _e ^f", "FBEC", [66, 70, 63, 60]),
        ("D exp _b_e^f", "FBEC", [66, 70, 63, 60]),
        ("Dmix_b", "FCBz", [66, 60, 70]),
        ("Gm^f=e", "FBEz", [66, 70, 64]),
        ("Bflat", "BEAz", [70, 63, 69]),
        ("B flat", "BEAz", [70, 63, 69]),
        ("B flat minor", "BEAD", [70, 63, 68, 61]),
        ("F Sharp min", "FCGD", [66, 61, 68, 62]),
        ("=c^g", "FCGz", [65, 60, 68]),
        ("C ^f", "FCGz", [66, 60, 67]),
        ("^f _b", "FBEz", [66, 70, 64]),
        ("none", "FCGz", [65, 60, 67]),
        ("HP", "FCGz", [66, 61, 67]),  # pipes sound F# and C#, whether they are printed or not
        ("Hp", "FCGz", [66, 61, 67]),
        ("hp clef=treble", "FCGz", [66, 61, 67]),
        ("C transpose=-2", "CDEz", [58, 60, 62]),
        ("C treble octave=-1", "CDEz", [48, 50, 52]),
        ("C clef=treble-8", "CDEz", [48, 50, 52]),
        ("Em clef=bass", "FCGz", [66, 60, 67]),
        ("G % Dorian", "FCGz", [66, 60, 67]),
        ("G clef=treble", "FCGz", [66, 60, 67]),
        ("Bb bass", "BEAz", [70, 63, 69]),
        ("D transpose=-2", "FCGz", [64, 59, 65]),
        ("D middle=B stafflines=5", "FCGz", [66, 61, 67]),
        ("C m=D", "BEAz", [71, 64, 69]),
        ("clef=treble G", "FCGz", [66, 60, 67]),  # the clef before the key
        ("bass D", "FCGz", [66, 61, 67]),
        ("treble", "FCGz", [65, 60, 67]),
        ("G#", "FCBz", [67, 61, 72]),  # eight sharps: F has two
        ("Fb", "FCBz", [64, 59, 69]),  # eight flats: B has two
        ("Edur", "FCGD", [66, 61, 68, 63]),
        ("Emoll", "FCGD", [66, 60, 67, 62]),
        ("Emi", "FCGD", [66, 60, 67, 62]),
        ("Dsus", "FCGz", [66, 61, 67]),  # of an unknown mode the tonic counts
        ("C clef=treble+15", "CDEz", [84, 86, 88]),
        ("C bass-15", "CDEz", [36, 38, 40]),
        ("C sound=cA", "CDEz", [57, 59, 61]),  # a minor third lower
        ("C shift=_Bc", "CDEz", [62, 64, 66]),
        ("am", "FCGz", [65, 60, 67]),
        ("G exp", "FCGz", [65, 60, 67]),
    ],
)
def test_keys(key: str, music: str, expected: list[int]) -> None:
    assert pitches(abc(music + "|", key=key)) == expected


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        ("C3/2D/E/2F//G///Az///|", ["3/2", "1/2", "1/2", "1/4", "1/8", "1"]),
        ("C>DE<F|", ["3/2", "1/2", "1/2", "3/2"]),
        ("C>>DE<<F|", ["7/4", "1/4", "1/4", "7/4"]),
        ("C>(DE)<(F|", ["3/2", "1/2", "1/2", "3/2"]),
        ("C>{g}D E < F|", ["3/2", "1/2", "1/2", "3/2"]),
        ("C2 E>||F|", ["2", "3/2", "1/2"]),
        ("C2>z2|", ["3"]),
        ("C>D>E F|", ["3/2", "1/2", "1", "1"]),  # each note is changed once
        ("C<D>E F|", ["1/2", "3/2", "1", "1"]),
        ("C>[DF]E2|", ["3/2", "1/2", "1/2", "2"]),
        ("(3CDE F2|", ["2/3", "2/3", "2/3", "2"]),
        ("(3:2:2C2D G2|", ["4/3", "2/3", "2"]),
        ("(3::2C2D G2|", ["4/3", "2/3", "2"]),
        ("(2CD G|", ["3/2", "3/2", "1"]),
        ("(4CDEF G|", ["3/4", "3/4", "3/4", "3/4", "1"]),
        ("(5CDEFG A2|", ["2/5"] * 5 + ["2"]),
        ("(10:8:10C/D/E/F/G/C/D/E/F/G/|", ["2/5"] * 10),
        ("(3:2:12C/D/E/C/D/E/C/D/E/C/D/E/|", ["1/3"] * 12),
        ("(1CDEF|", ["1"] * 4),  # no tuplet
        ("(3:2:5CD(3E/F/G/ z2|", ["2/3", "2/3", "2/9", "2/9", "2/9"]),  # one in the other
        ("(3CD(3EFG A2/3|", ["2/3"] * 6),  # not where the first does not say its length
        ("(3C>DE F2|", ["1", "1/3", "2/3", "2"]),
        ("(3CDE>F z|", ["2/3", "2/3", "2/3", "1"]),
        ("[CE]2[C2E]/G|", ["2", "2", "1", "1", "1"]),
        ('["C"C"^high"E]2[!accent!G]D|', ["2", "2", "1", "1"]),
        ("[+slide+CE]2[C+f+E]2|", ["2", "2", "2", "2"]),
        ("+f+C+ff+D+CE+F|", ["1", "1", "1", "1", "1"]),
        ("+CE+2+C/E/+2D|", ["2", "2", "1", "1", "1"]),
        ("C-CD2|", ["2", "2"]),
        ("C2-|C2D2|", ["4", "2"]),
        ("C4|-C4-|-C2 -D2|", ["10", "2"]),  # after the bar line, against the standard
        ("[CE]-[CE]z2|", ["2", "2"]),
        ("[C-E][CE]z2|", ["2", "1", "1"]),
        ("C-DE2|", ["1", "1", "2"]),
        ("z4|C60001/250000D1/999983E60001/999983|", ["9677/40320", "2419/40320"]),  # to a tick
        ("[L:1/1875000]A468750B937500z468750|", ["1", "2"]),
    ],
)
def test_lengths(music: str, expected: list[str]) -> None:
    assert [note.duration for note in abc(music).notes] == [Fraction(text) for text in expected]


def test_a_tuplet_of_five_follows_the_meter() -> None:
    song = abc("(5CDEFGz3/2|", meter="9/8")
    assert {note.duration for note in song.notes} == {Fraction(3, 5)}
    song = abc("(5CDEFGz|", "L:1/8", meter="3/8")
    assert {note.duration for note in song.notes} == {Fraction(1, 5)}


def test_a_tie_into_an_ending_is_played_each_time() -> None:
    song = abc("|:D4|C4-|[1C4:|[2C4|]")
    assert [(n.pitch, float(n.duration)) for n in song.notes] == [(D, 4), (C, 8), (D, 4), (C, 8)]
    sharp = abc("|:D4|^F4-|[1F4:|[2F4|F4|]")
    assert pitches(sharp) == [D, 66, D, 66, 65]
    for music in ("|:D4|C4|1-C4:|2-C4|", "|:D4|C4|[1 -C4:|[2 -C4|]", "|:D4|C4|1,3-C4:|2-C4|"):
        late = [(n.pitch, float(n.duration)) for n in abc(music).notes]
        assert late[:4] == [(D, 4), (C, 8), (D, 4), (C, 8)]
    named = abc('|:^F4-|["a" F4:|["b" F4|]')
    assert [(n.pitch, float(n.duration)) for n in named.notes] == [(66, 8), (66, 8)]
    apart = abc('|:^F4-|1F4:|2F4|]|:A4|["last" F4|]')
    assert pitches(apart)[-1] == 65


def test_unison_is_one_note() -> None:
    assert [bar.reason for bar in to_grid(abc("[CC]4|[ce]4|"))] == [None, "chord"]
    for chord in ("[C-C]4", "[CC-]4"):
        assert len(abc(f"{chord}|C4|").notes) == 1


def test_a_voice_overlay_sounds_together_with_its_bar() -> None:
    song = abc("C4&E2G2|D4|")
    assert [(float(n.onset), n.pitch) for n in song.notes] == [(0, C), (0, E), (2, G), (4, D)]
    assert lengths(song) == [4, 4]


@pytest.mark.parametrize(
    ("music", "expected", "bars"),
    [
        ("C4|D4&&E4|F4|G4|", [(0, C), (0, E), (4, D), (4, F), (8, G)], 3),
        ("C4|D4|&&E4|F4|G4|", [(0, C), (0, E), (4, D), (4, F), (8, G)], 3),
        ("(&C4|D4 & E4|F4&)|G4|", [(0, C), (0, E), (4, D), (4, F), (8, G)], 3),
        ("(&C4|D2&E4|F2&)B2|", [(0, C), (0, E), (4, D), (4, F), (6, B)], 2),
        ("(&C4|D4&E4&G4&)|B4|", [(0, C), (0, E), (0, G), (4, D), (8, B)], 3),
        ("(&C4|D4&E4", [(0, C), (0, E), (4, D)], 2),
        ("C4|(&D4:|", [(0, C), (4, D), (8, C), (12, D)], 4),
    ],
)
def test_an_overlay_of_several_bars_goes_back_to_the_first(
    music: str, expected: list[tuple[int, int]], bars: int
) -> None:
    song = abc(music)
    assert [(float(n.onset), n.pitch) for n in song.notes] == expected
    assert lengths(song) == [4] * bars


@pytest.mark.parametrize(
    ("music", "onsets", "bars"),
    [
        ("C2z2|x2D2|", [0, 6], 2),
        ("C4|Z2|D4|", [0, 12], 4),
        ("C4|X|D4|", [0, 8], 3),
        ("C4|Z|[M:2/4]Z2|D2|", [0, 12], 5),
    ],
)
def test_rests(music: str, onsets: list[int], bars: int) -> None:
    song = abc(music)
    assert [float(note.onset) for note in song.notes] == onsets
    assert len(song.bars) == bars


def test_absurd_rests_and_notes_are_refused() -> None:
    for music in ("C4|Z999999999|D4|", "C4|z9999|D4|", "Z1999|" * 30 + "C4|"):
        assert rejection("a.abc", (HEAD + music + "\n").encode()).reason == "too large"
    odd = rejection("a.abc", (HEAD + "C4|(11:8:1C999|\n").encode())
    assert (odd.reason, odd.detail) == ("too large", "a bar of 727 quarter notes")
    high = rejection("a.abc", (HEAD + "C4|c''''''|\n").encode())
    assert (high.reason, "MIDI" in high.detail) == ("unreadable", True)
    macro = HEAD.replace("K:", f"m:~n={'n' * 900}\nK:") + "~C" * 15_000
    assert rejection("a.abc", macro.encode()).detail == "its macros are too long, written out"


# ---- what is no note


@pytest.mark.parametrize(
    "music",
    [
        "HCTDuEvF|",
        "~C.D!trill!E!fermata!F|",
        "!f!C!>!D!D.S.!E!1!F|",
        "+trill+C+fermata+DE+accent+F|",
        "LCMDPERF|",
        '"^Allegro"C"Am"D"<d"E"G7/b"F|',
        r'"^f\"ur \"Abe\""CDE"^\\"F|',
        "{gab}C{/g}DE{a}F|",
        "C(D(E))F|",
        "C`D`E`F|",
        "CDyEy2F|",
        "CD$E*F|",
        "qCDiEF|",
        "[r:remark ABC]CDEF|",
        "CDEF|% GAB",
        "CDEF|!",
        "!C D E F!|",  # old line breaks, not a decoration
        "!8va(!C!8va)!D!fz!E!edge!F|",
        "CD\\\nEF|",
        "CD\nw:ga bd\nEF|",
        "CD\nw:|la\ns:ABC\nN:ABC\nEF|",
        "\u201cAm\u201dC\u201eD\u201cDEF|",
        "%%text GAB\nCDEF|\n%%begintext\nGAB|\n%%endtext\n",
        "CDEF|\n\nA fine tune by Abe, GAG BAD FEED.\n",
    ],
)
def test_what_is_no_note_is_passed_over_and_notes_beside_it_stay(music: str) -> None:
    song = abc(music)
    assert letters(song) == "CDEF"
    assert lengths(song) == [4]


def test_user_defined_letters_keep_their_note() -> None:
    assert letters(abc("TCDWEF|", "U:T=!trill!", "U: W = !fermata!")) == "CDEF"
    assert letters(abc("C4|WD4|", "U:W=!D.C.!")) == "CDCD"


@pytest.mark.parametrize(
    ("macro", "music", "expected"),
    [
        ("~G3 = G{A}G{F}G", "C~G3|", [C, G, G, G]),
        ("~n3 = n{o}nm", "C~D3|C~A3|", [C, D, D, C, C, A, A, G]),
        ("~n2=o/n/m/n/", "~B,2~c'2|", [60, 59, 57, 59, 86, 84, 83, 84]),
        ("~n2=i!trill!n", "~C2 z2|", [52, 60]),  # "i" is five steps below "n"
        ("yD = GA", 'C"yD"yDE|[N:yD]CDEF|', [C, G, A, E, C, D, E, F]),  # not within texts
        ("C = D", "CDEF|", [D, D, E, F]),
        ("D =", "CDEFG|", [C, E, F, G]),
    ],
)
def test_macros_are_written_out(macro: str, music: str, expected: list[int]) -> None:
    assert pitches(abc(music, f"m: {macro}")) == expected
    book = f"m: {macro}\n\n{HEAD}{music}\n"
    assert pitches(only("a.abc", book.encode())) == expected


def test_old_line_breaks_do_not_swallow_music() -> None:
    assert letters(abc("C4|!D4|E4:|!F4|G4\n!A2 B2|")) == "CDECDEFGAB"
    assert letters(abc("C !D E! F|")) == "CDEF"


@pytest.mark.parametrize("field", ["I:linebreak !", "%%linebreak <EOL> !", "I:decoration +"])
def test_where_decorations_stand_between_plus_signs_others_are_line_breaks(field: str) -> None:
    assert letters(abc("+f+C!D!EF|G!A!BC+fine+|D4+D.C.+|", field)) == "CDEFGABCDCDEFGABC"
    assert letters(only("a.abc", f"{field}\n\n{HEAD}C!D!EF|\n".encode())) == "CDEF"


def test_a_line_is_a_field_only_where_its_colon_is_not_of_a_bar_line() -> None:
    assert letters(abc("|:CDE\nF:|\nGAB\nC::\nD4\nE:|")) == "CDEFCDEFGABCGABCDEDE"


# ---- fields


def test_fields_go_on_in_lines_of_their_own() -> None:
    key = "C % major\n% no:\n+:minor octave=-1"
    assert pitches(abc("CDEz|\nN:on\n+:CDEF|\n+:GABc|\nB4|", key=key)) == [48, 50, 51, 58]
    assert pitches(abc("V:1 name=Low\n+: octave=-1\nCDEz|")) == [48, 50, 52]
    titled = HEAD.replace("Tune", "Long % or short\n+:Tune") + "C4|\n+:D4|\nE4|\n"
    assert only("a.abc", titled.encode()).title == "A Long Tune"
    assert letters(only("a.abc", titled.encode())) == "CE"
    # The history of old files goes on without a sign, up to the next field.
    story = ("H:Abe heard it", "at a fair | and played", "+:it to Bede: ABC|", "", "C4|D4|")
    assert letters(abc("CDEF|", *story)) == "CDEF"


def test_fields_within_the_music() -> None:
    song = abc("CDEF|[K:D]FCGz|[L:1/8]C2D2E2F2|[M:3/4][L:1/4]CDE|\nM:2/4\nK:F\nBE|\n")
    assert pitches(song) == [60, 62, 64, 65, 66, 61, 67, 61, 62, 64, 66, 61, 62, 64, 70, 64]
    meters = [(bar.meter, float(bar.length)) for bar in song.bars]
    assert meters == [("4/4", 4)] * 3 + [("3/4", 3), ("2/4", 2)]


@pytest.mark.parametrize(
    ("meter", "expected"),
    [
        ("C", "4/4"),
        ("C|", "2/2"),
        ("C |", "2/2"),
        ("6/8", "6/8"),
        ("3+2/8", "5/8"),
        ("(2+3)/8", "5/8"),
        ("1/8+2/4", "5/8"),
        ("nonsense", "4/4"),
        ("4/3", "4/4"),
    ],
)
def test_meters(meter: str, expected: str) -> None:
    assert abc("C4z4|C5|C4|C6|", "L:1/8", meter=meter).bars[0].meter == expected


def test_no_bar_in_free_meter_is_complete() -> None:
    song = abc("C4|D4|[M:none]E2|F2|G4|A5|Z|[M:4/4]B4|")
    assert lengths(song) == [4, 4, 2, 2, 4, 5, 4, 4]
    reasons = [bar.reason for bar in to_grid(song)]
    assert reasons == [None, None, *["free meter"] * 5, None]
    whole = rejection("a.abc", HEAD.replace("4/4", "None").encode() + b"C4|D4|E4|\n")
    assert (whole.reason, whole.detail.split(":")[0]) == ("no complete bar", "free meter")
    song = only("a.abc", b"X:1\nM:none\nK:C\nC8|[M:2/4]C4|\n")
    assert [note.duration for note in song.notes] == [4, 2]  # eighths


def test_without_a_unit_the_meter_gives_it_once() -> None:
    for meter, length in (
        ("4/4", Fraction(1, 2)),
        ("3/4", Fraction(1, 2)),
        ("2/4", Fraction(1, 4)),
    ):
        song = only("a.abc", f"X:1\nM:{meter}\nK:C\nCDEFCDEF|[M:6/8]CDEFGA|\n".encode())
        assert {note.duration for note in song.notes} == {length}


@pytest.mark.parametrize(
    ("field", "tempo"),
    [
        ("1/4=90", 90),
        ("1/8=90", 45),
        ("3/8=60", 90),
        ("1/4 1/8 = 60", 90),
        ("1/4 + 1/8 = 60", 90),
        ("1/4 = ca. 72", 72),
        ("1/4=c.72", 72),
        ("c=100", 100),
        ("1/4=20000", 120),  # no tempo, nor is 2000
        ('"Slow" 1/4=50', 50),
        ('1/4=50 "Slow"', 50),
        ("C=100", 100),
        ("C2=100", 200),
        ("100", 100),
        ('"Andante"', 120),
        ("1/4=3/8", 120),  # a relation of beats
        ("1/4=0", 120),
        ("1/16=3", 120),
    ],
)
def test_tempos(field: str, tempo: float) -> None:
    assert abc("CDEF|", f"Q:{field}").tempo == tempo


def test_a_tempo_before_the_unit_counts_in_it() -> None:
    tune = "X:1\nM:4/4\nQ:100\nL:1/4\nK:C\nCDEF|\n"
    assert only("a.abc", tune.encode()).tempo == 100


def test_what_moves_notes_adds_up_and_ends_by_itself() -> None:
    assert pitches(abc("CDEz|", "V:1 octave=-1", key="C transpose=-2")) == [46, 48, 50]
    assert pitches(abc("V:1\nCz3|[K:bass]Cz3|", "V:1 clef=treble-8")) == [48, 60]
    assert pitches(abc("V:1\nCz3|\nV:1 clef=treble\nCz3|", "V:1 treble-8")) == [48, 60]
    assert pitches(abc("V:1\nCz3|", 'V:1 name="my bass octave=1" clef=treble-8')) == [48]
    assert pitches(abc("V:1\nCz3|", 'V:1 clef="treble-8"')) == [48]


def test_a_directive_transposes_playback() -> None:
    for directive in ("%%MIDI transpose -12", "I:MIDI transpose -12", "I:MIDI = transpose -12"):
        assert pitches(abc("CDEz|", directive, key="C transpose=-2")) == [46, 48, 50]
    assert pitches(abc("C4|\n%%MIDI transpose 12\nC4|\n%%MIDI transpose 0\nC4|")) == [60, 72, 60]
    assert pitches(abc("C4|", "%%MIDI program 40")) == [60]
    assert pitches(abc("C4|", "%%MIDI transpose 2", "%%MIDI rtranspose -5")) == [57]


def test_a_clef_alone_leaves_the_key() -> None:
    for field in ("clef=bass", "bass", "octave=0", "cue=on"):
        assert pitches(abc(f"F4|[K:{field}]F4|", key="D")) == [66, 66]


def test_a_tempo_holds_from_where_it_stands_each_time_it_is_played() -> None:
    song = abc("C4|[Q:1/4=60]D4:|E4|[Q:1/4=90]F4|")
    assert song.tempo == 120
    speeds = [song.tempo_at(bar.start) for bar in song.bars]
    assert speeds == [120, 60, 60, 60, 60, 90]


def test_how_far_accidentals_go_can_be_said() -> None:
    for how, expected in (("not", [66, 65, 77]), ("octave", [66, 66, 77]), ("pitch", [66, 66, 78])):
        assert pitches(abc("^FFfz|", f"%%propagate-accidentals {how}")) == expected
        assert pitches(abc("^FFfz|", f"I:propagate-accidentals {how}")) == expected


# ---- voices


def test_voices_are_parts() -> None:
    body = "[V:S] CDEF|\n[V:A] E4|\n[V:S] G4|\n[V:A] C4|\n"
    text = f'{HEAD[:-4]}V:S name="High one"\nV:A nm=Low clef=bass\nV:B\nK:C\n{body}'.encode()
    assert rejection("a.abc", text).detail == "1 'High one', 2 'Low'"
    assert letters(only("a.abc", text, "High one")) == "CDEFG"
    assert letters(only("a.abc", text, "2")) == "EC"
    assert letters(only("a.abc", text, "A")) == "EC"
    assert rejection("a.abc", text, "Bass").reason == "no such part"
    assert letters(abc("V:1\tclef=treble\nC4|\nV:1\nD4|")) == "CD"


def test_a_voice_keeps_its_own_key_meter_and_accidentals() -> None:
    body = "V:1\nK:D\n^G2F2|\nV:2\nG2F2|\nV:1\nG2F2|\n"
    text = (HEAD + body).encode()
    assert pitches(only("a.abc", text, "1")) == [68, 66, 67, 66]
    assert pitches(only("a.abc", text, "2")) == [67, 65]


def test_tempos_of_one_voice_hold_for_all() -> None:
    text = (HEAD + "V:1\nC4|[Q:1/4=80]D4|\nV:2\nE4|G4|\n").encode()
    for part in ("1", "2"):
        song = only("a.abc", text, part)
        assert [song.tempo_at(bar.start) for bar in song.bars] == [120, 80]


def test_a_voice_on_the_channel_of_drums_is_left_out() -> None:
    drums = "V:drum\n%%MIDI channel 10\nF2[FA]2|F4|\n"
    alone = rejection("a.abc", f"{HEAD}%%MIDI channel 10\nF4|F4|\n".encode())
    assert (alone.reason, alone.detail) == ("no notes", "percussion only")
    assert letters(abc(f"V:1\nC4|D4|\n{drums}")) == "CD"
    assert letters(abc("V:1\n%%MIDI channel 1\nC4|D4|\n")) == "CD"
    alone = rejection("a.abc", (HEAD + drums).encode())
    assert (alone.reason, alone.detail) == ("no notes", "percussion only")


def test_notes_in_the_clef_of_drums_are_left_out() -> None:
    drums = "V:drum perc stafflines=1\nF2[FA]2|F4|\n"
    alone = rejection("a.abc", (HEAD + drums).encode())
    assert (alone.reason, alone.detail) == ("no notes", "percussion only")
    assert letters(abc(f"V:1\nC4|D4|\n{drums}")) == "CD"
    assert letters(abc("V:1\nC4|D4|\nV:2\nF4|F4|", "V:2 clef=perc")) == "CD"
    assert letters(abc("V:1\nC4|D4|\nV:2\nF4|F4|", "V:1 clef=treble", key="C perc")) == "CD"
    some = abc("C4|[K:perc]F>F F2-|[K:treble]F4|\n%%MIDI channel 10\nD4|\n%%MIDI channel 1\nE4|")
    assert [(float(n.onset), n.pitch) for n in some.notes] == [(0, C), (8, F), (16, E)]
    assert pitches(abc("V:1\nC4|", 'V:1 name="perc one" clef=treble-8')) == [48]


def test_directives_after_a_voice_in_the_header_are_of_that_voice() -> None:
    fields = ("%%MIDI transpose 1", "V:1", "%%MIDI transpose 12", "V:2", "%%MIDI channel 10")
    assert pitches(abc("V:1\nC4|D4|\nV:2\nE4|F4|\n", *fields)) == [72, 74]
    assert pitches(abc("V:2\nE4|F4|\n", *fields[:4])) == [65, 66]
    assert pitches(abc("C4|D4|\n", *fields)) == [72, 74]


def test_one_voice_declared_and_used_is_one_part() -> None:
    head = '%%score 1\nI:linebreak $\nV:1 treble nm="Voice" snm="V."\nV:2 octave=-1\n'
    assert letters(abc(head + "V:1\nCDEF|$GABC|\n")) == "CDEFGABC"
    assert pitches(abc("V:2\nCDEF|\n", "V:1", "V:2 octave=-1")) == [48, 50, 52, 53]


# ---- books


def test_the_title_of_a_book_is_not_that_of_its_tunes() -> None:
    book = "T:All the Tunes\nM:3/4\n\nX:1\nT:One\nK:C\nCDEFGA|\n\nX:2\nK:C\nCDEFGA|\n"
    songs = [song for song in read_melodies("book.abc", book.encode()) if isinstance(song, Melody)]
    assert [song.title for song in songs] == ["One", "book:2"]
    assert {bar.meter for song in songs for bar in song.bars} == {"3/4"}


@pytest.mark.parametrize(
    ("field", "title"),
    [
        (r"La Nov\'elle na\"ive", "La Nov\u00e9lle na\u00efve"),
        (r"Se\'an \cCa \~n \vs \/O\aa \ss", "Se\u00e1n \u00c7a \u00f1 \u0161 \u00d8\u00e5 \u00df"),
        (r"\u00c9ire &eacute; &amp; &#233; AT&T", "\u00c9ire \u00e9 & \u00e9 AT&T"),
        (r"100\% \& more \\ x\y", "100% & more \\ x\\y"),
        (r"\ud800 &bogus;", "\ufffd &bogus;"),  # no half of a character
    ],
)
def test_titles_are_written_with_escapes(field: str, title: str) -> None:
    assert only("a.abc", f"X:1\nT:{field}\nK:C\nC8|\n".encode()).title == title


def test_what_a_book_says_before_its_tunes_does_not_count_as_part_of_each() -> None:
    notes = "%%bk:set id:1,name:A Set\nN:A note\n" * 2_000
    book = f"{notes}M:3/4\n%%MIDI transpose 12\n\nX:1\nK:C\nCDEFGA|\n\nX:2\nK:C\nCDEFGA|\n"
    songs = [song for song in read_melodies("book.abc", book.encode()) if isinstance(song, Melody)]
    assert [(pitches(song)[0], song.bars[0].meter) for song in songs] == [(72, "3/4")] * 2


def test_ids_of_tunes_know_no_comments() -> None:
    book = "X: 012 % the twelfth\nK:C\nCDEF|\n\nX:3\nK:C\nGABC|\n"
    assert [song.id for song in read_melodies("book.abc", book.encode())] == ["book:12", "book:3"]


def test_books_joined_of_files_with_byte_order_marks() -> None:
    tune = HEAD + "CDEF|\n"
    book = (tune + "\n" + tune.replace("X:1", "X:2")).replace("X:", "\ufeffX:").encode()
    songs = [song for song in read_melodies("book.abc", book) if isinstance(song, Melody)]
    assert [letters(song) for song in songs] == ["CDEF", "CDEF"]


def test_books_joined_of_files_in_several_encodings() -> None:
    tune = HEAD.replace("A Tune", "Caf\xe9") + "CDEF|\n\n"
    book = tune.encode() + tune.replace("X:1", "X:2").encode("latin-1")
    songs = [song for song in read_melodies("book.abc", book) if isinstance(song, Melody)]
    assert [song.title for song in songs] == ["Caf\xe9", "Caf\xe9"]


def test_a_book_may_name_its_encoding() -> None:
    text = f"I:abc-charset iso-8859-2\n\n{HEAD}CDEF|\n".replace("A Tune", "Dvo\u0159\u00e1k")
    assert only("a.abc", text.encode("iso-8859-2")).title == "Dvo\u0159\u00e1k"
    assert only("a.abc", text.encode()).title == "Dvo\u0159\u00e1k"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_line_ends_and_encodings(ending: str, encoding: str) -> None:
    text = HEAD.replace("A Tune", "Caf\xe9 \x85") + "CDEF|\nGABC|\n"
    song = only("a.abc", text.replace("\n", ending).encode(encoding))
    # In a file of single bytes it is the ellipsis of Windows, else a control character.
    title = "Caf\xe9 \u2026" if encoding == "latin-1" else "Caf\xe9"
    assert (song.title, letters(song)) == (title, "CDEFGABC")


def test_quotes_and_dashes_of_windows_are_not_control_characters() -> None:
    title, music = b"Paddy\x92s \x93Reel\x94 \x96 \x80", b"c\x92\x924\x96|c''4|"
    song = only("a.abc", HEAD.encode().replace(b"A Tune", title) + music)
    assert song.title == "Paddy\u2019s \u201cReel\u201d \u2013 \u20ac"
    assert [(n.pitch, float(n.duration)) for n in song.notes] == [(96, 8)]


def test_a_tune_from_a_mail_in_quoted_printable() -> None:
    text = "X:1\nT:A =3D B\nM:4/4\nL:1/4\nQ:1/4=3D100\nK:D\nc=3Dc=\n d=3DF|=20\nF=FFF|=0D\n"
    song = only("mail.abc", text.encode())
    assert (song.title, song.tempo) == ("A = B", 100)
    assert pitches(song) == [73, 72, 74, 65, 66, 65, 65, 65]


def test_tunes_from_the_source_of_a_web_page() -> None:
    tune = HEAD.replace("A Tune", "A &amp; B") + "C&lt;D E&gt;F|&quot;Am&quot;C4&amp;E4|\n"
    page = f"<html><body>\n<pre class='abc'>{tune}</pre>\n{tune.replace('X:1', 'X:2')}</pre>"
    expected = [(0, C), (0.5, D), (2, E), (3.5, F), (4, C), (4, E)]
    for data in (tune, page, tune.replace("\n", "<br>"), tune.replace("\n", "<BR />\n")):
        for song in read_melodies("page.abc", data.encode()):
            assert isinstance(song, Melody)
            assert song.title == "A & B"
            assert [(float(n.onset), n.pitch) for n in song.notes] == expected
    assert letters(abc('"^A &quot;B&quot;"CDEF|')) == "CDEF"
    assert [float(n.duration) for n in abc("C<a>b2|</pre>").notes] == [0.5, 1.5, 2]


def test_a_slow_tempo_is_no_sign_of_a_mail() -> None:
    text = "X:1\nM:4/4\nL:1/4\nQ:1/4=20\nK:D\nFF=FF|\nFFFF|\n"
    song = only("slow.abc", text.encode())
    assert (song.tempo, pitches(song)) == (20, [66, 66, 65, 65, 66, 66, 66, 66])


# ---- every built-in tune


@pytest.mark.slow
def test_the_built_in_tunes_are_read_as_they_were_when_held_against_abc2midi() -> None:
    expected = json.loads(DIGESTS.read_text())
    found = oracles.digests(tune for tune in read_builtin_tunes() if tune[0] in expected)
    assert {name for name in expected if expected[name] != found[name]} == set()
    assert found.keys() == expected.keys()
