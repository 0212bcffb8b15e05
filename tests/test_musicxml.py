"""It is long, since every feature of MusicXML has a score."""

import io
import re
import tracemalloc
import zipfile
from fractions import Fraction

import pytest

from cf_core.grid import to_grid
from cf_core.melody import Note
from tests.melodies import C, D, E, F, G, lengths, only, pitches, rejection, score, xml_note

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
    assert to_grid(song)[2].held == D


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
    assert [bar.reason for bar in to_grid(song)] == [None, "chord", None]


def play(measures: list[str]) -> list[int]:
    """Pitches of a score whose measures are given as a letter and what stands beside its note."""
    steps = [f"{xml_note(text[0], 4, 4)}{text[1:]}" for text in measures]
    return pitches(only("a.xml", score({"Voice": steps})))


def line(inside: str, side: str = "right") -> str:
    return f'<barline location="{side}">{inside}</barline>'


AGAIN = line('<repeat direction="backward" after-jump="yes"/>')
END, START = line('<repeat direction="backward"/>'), line('<repeat direction="forward"/>', "left")


def ending(numbers: str, side: str = "left", *, end: bool = False) -> str:
    kind = "start" if side == "left" else "stop"
    repeat = '<repeat direction="backward"/>' if end else ""
    return line(f'<ending number="{numbers}" type="{kind}"/>{repeat}', side)


def unnumbered(text: str) -> str:
    return line(f'<ending number=" " type="start">{text}</ending>', "left")


def played(times: int) -> str:
    return line(f'<repeat direction="backward" times="{times}"/>')


def words(*texts: str) -> str:
    every = "".join(f"<words>{text}</words>" for text in texts)
    return f"<direction><direction-type>{every}</direction-type></direction>"


SEGNO = "<direction><direction-type><segno/></direction-type></direction>"
CODA = '<direction><direction-type><coda/></direction-type><sound coda="1"/></direction>'


@pytest.mark.parametrize(
    ("measures", "expected"),
    [
        (["C", f"D{END}", "E", f"F{END}"], [C, D, C, D, E, F, E, F]),
        (["C", f"D{START}", f"E{END}", "F"], [C, D, E, D, E, F]),
        (["C", f"D{line('<bar-style>light-light</bar-style>')}", f"E{END}"], [C, D, E, E]),
        (["C" + line('<repeat direction="forward"/>'), f"D{END}", "E"], [C, D, D, E]),
        (
            ["C", f"D{ending('1')}{ending('1', 'right', end=True)}", f"E{ending('2')}", "F"],
            [C, D, C, E, F],
        ),
        (
            [
                "C",
                f"D{ending('1, 2')}{ending('1, 2', 'right', end=True)}",
                f"E{ending('3')}{ending('3', 'right')}",
                f"F{END}",
            ],
            [C, D, C, D, C, E, F, F],
        ),
        (
            [
                "C",
                f"D{unnumbered('1.')}{ending(' ', 'right', end=True)}",
                f"E{unnumbered('2.')}{ending(' ', 'right')}",
                "F",
            ],
            [C, D, C, E, F],
        ),
        (
            [
                "C",
                f"D{unnumbered('1.&#8211;3.')}{ending(' ', 'right', end=True)}",
                f"E{unnumbered('4.')}",
            ],
            [C, D, C, D, C, D, C, E],
        ),
        ([f"C{ending('1').replace('left', 'right')}", f"D{END}", "E"], [C, D, C, E]),
        ([f"C{played(3)}", "D"], [C, C, C, D]),
        # Verses: the bracket of the first two has no repeat sign.
        (
            [
                f"C{line('<bar-style>light-light</bar-style>')}",
                "D",
                f"E{ending('1, 2')}{ending('1, 2', 'right')}",
                f"F{ending('3')}{ending('3', 'right')}",
            ],
            [C, D, E, D, E, D, F],
        ),
        # The bracket of the first ending is open at its right: the ending goes on.
        (
            [
                "C",
                f"D{ending('1')}{ending('1', 'right').replace('stop', 'discontinue')}",
                f"E{END}",
                f"F{ending('2')}{ending('2', 'right').replace('stop', 'discontinue')}",
                "G",
            ],
            [C, D, E, C, F, G],
        ),
        # The bracket of the last ending is shorter than the one before it.
        (
            [
                "C",
                f"D{ending('1')}",
                f"E{ending('1', 'right', end=True)}",
                f"F{ending('2')}{ending('2', 'right').replace('stop', 'discontinue')}",
                f"G{END}",
                "C",
            ],
            [C, D, E, C, F, G, C],
        ),
        (['C<sound forward-repeat="yes"/>', "D", f"E{END}"], [C, D, E, D, E]),
        ([f"C{played(99)}", "D"], [C, C, C, C, D]),
        (["C", f"D{words('Fine')}", f"E{words('D.C. al Fine')}"], [C, D, E, C, D]),
        (["C", 'D<sound fine="yes"/>', 'E<sound dacapo="yes"/>'], [C, D, E, C, D]),
        # Signs after the notes of a measure stand at the bar line: the next one begins there.
        ([f"C{SEGNO}", "D", f"E{words('Dal Segno')}"], [C, D, E, D, E]),
        ([f"C{line('<segno/>')}", "D", f"E{words('D.S.')}"], [C, D, E, D, E]),
        (
            ["C", f"D{words('To Coda')}", f"E{words('D.C. al Coda')}<sound coda='1'/>", "F"],
            [C, D, E, C, D, F],
        ),
        (
            ["C", f"D{words('To Coda')}{line('<coda/>')}", f"E{words('D.C.')}{CODA}", "F"],
            [C, D, E, C, D, F],
        ),
        (
            ["C", f"D{line('<coda/>')}", f"E{words('D.C.')}", f"F{line('<coda/>', 'left')}"],
            [C, D, E, C, D, F],
        ),
        (
            [
                f"C{SEGNO}",
                "D",
                f"E{words('To ', 'Coda')}",
                f"F{words('D.S. al', 'Coda')}",
                f"G{words('Coda')}",
            ],
            [C, D, E, F, D, E, G],
        ),
        (["C", f"D{words('dolce, con moto')}", "E"], [C, D, E]),
        (["C", f"D{END}", f"E{words('D.C.')}"], [C, D, C, D, E, C, D, E]),
        (["C", f"D{AGAIN}", f"E{words('D.C.')}"], [C, D, C, D, E, C, D, C, D, E]),
        (["C", f"D{words('Segno')}", f"E{words('D.S.')}"], [C, D, E, D, E]),
        ([f"C{SEGNO}", "D", f"E{words('D.&#x1D10B;')}"], [C, D, E, D, E]),
        ([f"C{SEGNO}", f"D{words('Fine')}", f"E{words('dal S. al fine')}"], [C, D, E, D]),
        (
            ["C", f"D{words('To &#x1D10C;')}", f"E{words('D.C. al &#x1D10C;')}", f"F{CODA}", "G"],
            [C, D, E, C, D, G],
        ),
        # Nothing follows the last measure, so a sign at its end is of the measure.
        (["C", f"D{words('To Coda')}", f"E{words('D.C.')}", f"F{CODA}"], [C, D, E, C, D, F]),
        (
            [f"C{SEGNO}", f"D{words('Voice tacet on D.S.')}", f"E{words('last time D.S.')}", "F"],
            [C, D, E, D, E, F],
        ),
        ([f"C{words('D.C. only: ', 'piano')}", f"D{words('after the D.C.')}"], [C, D]),
        (["C", f"D{words('Fin')}", f"E{words('D. C.')}"], [C, D, E, C, D]),
    ],
)
def test_the_order_of_play(measures: list[str], expected: list[int]) -> None:
    assert play(measures) == expected


def test_signs_of_another_part_hold_for_all() -> None:
    upper = [xml_note("C", 5, 4), xml_note("D", 5, 4) + words("D.C."), ""]
    lower = [xml_note("C", 4, 4), xml_note("D", 4, 4) + END, xml_note("E", 4, 4)]
    song = only("a.xml", score({"Oboe": upper, "Horn": lower}), "Horn")
    assert pitches(song) == [C, D, C, D, C, D, E]
    odd = score({"Oboe": [xml_note("X", 99, 4)] * 3, "Horn": lower})
    assert pitches(only("a.xml", odd, "Horn")) == [C, D, C, D, E]


def test_sounding_pitch_of_transposing_parts() -> None:
    def transposed(inside: str) -> list[int]:
        change = f"<attributes><transpose>{inside}</transpose></attributes>"
        measures = [change + xml_note("C", 4, 4), xml_note("D", 4, 4)]
        return pitches(only("a.xml", score({"Clarinet": measures})))

    assert transposed("<diatonic>-1</diatonic><chromatic>-2</chromatic>") == [58, 60]
    assert transposed("<chromatic>3</chromatic><octave-change>-1</octave-change>") == [51, 53]
    assert transposed("<chromatic>0</chromatic><double/>") == [48, 50]
    assert transposed("<chromatic>-2.0</chromatic><octave-change>-1.0</octave-change>") == [46, 48]
    assert transposed('<chromatic>0</chromatic><double above="yes"/>') == [72, 74]


def test_cue_notes_chord_symbols_and_what_has_no_pitch_are_dropped() -> None:
    def cue(inside: str, after: str = "") -> str:
        return xml_note("G", 5, 1, inside=inside, after=after)

    measure = (
        '<harmony default-y="40" font-size="9"><root><root-step>A</root-step></root></harmony>'
        + cue("<cue/>")
        + cue("", '<type size="cue">eighth</type>')
        + xml_note("A", 5, 0, inside="<grace/>", after='<type size="grace-cue">eighth</type>')
        + "<note><unpitched/><duration>1</duration></note>"
        + xml_note("C", 4, 1)
    )
    song = only("a.xml", score({"Voice": [measure, xml_note("D", 4, 4)]}))
    assert [(float(n.onset), n.pitch) for n in song.notes] == [(1.5, C), (2, D)]
    slashes = "".join(xml_note("B", 4, 2, after="<notehead>slash</notehead>") for _ in range(2))
    assert pitches(only("a.xml", score({"Lead": [xml_note("C", 4, 4), slashes]}))) == [C]
    drums = "<note><unpitched/><duration>4</duration></note>"
    alone = rejection("a.xml", score({"Drums": [drums, drums]}))
    assert (alone.reason, alone.detail) == ("no notes", "percussion only")
    cues = rejection("a.xml", score({"Cues": [cue("<cue/>")] * 2}))
    assert (cues.reason, cues.detail) == ("no notes", "")


def test_backup_and_forward_move_between_voices() -> None:
    measure = (
        xml_note("C", 4, 4, after="<voice>1</voice>")
        + "<backup><duration>4</duration></backup><forward><duration>2</duration></forward>"
        + xml_note("E", 4, 2, after="<voice>2</voice>")
    )
    data = score({"Viola": [measure, xml_note("D", 4, 4)]})
    song = only("a.xml", data)
    assert [(float(n.onset), n.pitch) for n in song.notes] == [(0, C), (1, E), (2, D)]
    assert pitches(only("a.xml", data, "Viola, voice 1")) == [C, D]
    assert pitches(only("a.xml", data, "1, voice 2")) == [E]
    missing = rejection("a.xml", data, "Viola, voice 3")
    assert (missing.reason, missing.detail) == ("no such part", "voice 3 is none of 1, 2")
    odd = score({"Alto, voice 1": [xml_note("C", 4, 4)] * 2, "B": [xml_note("D", 4, 4)] * 2})
    assert pitches(only("a.xml", odd, "Alto, voice 1")) == [C, C]


def test_staves_can_be_named() -> None:
    def on(staff: int, step: str) -> str:
        return xml_note(step, 4, 4, after=f"<staff>{staff}</staff>")

    back = "<backup><duration>4</duration></backup>"
    piano = [on(1, "E") + back + on(2, "C"), on(1, "F") + back + on(2, "D")]
    alone = score({"Piano": piano})
    listed = "1 'Piano, staff 1', 2 'Piano, staff 2'"
    assert rejection("a.xml", alone).detail == listed
    assert listed in rejection("a.xml", alone, "Piano").detail
    for part in ("2", "Piano, staff 2", "Piano, staff 2, voice 1"):
        assert pitches(only("a.xml", alone, part)) == [C, D]
    both = score({"Voice": [xml_note("G", 4, 4)] * 2, "Piano": piano})
    assert rejection("a.xml", both).detail == "1 'Voice', 2 'Piano, staff 1', 3 'Piano, staff 2'"
    assert pitches(only("a.xml", both, "Voice")) == [G, G]
    assert pitches(only("a.xml", both, "2")) == [E, F]


def test_parts_and_staves_without_notes_are_left_out() -> None:
    rests = "<note><rest/><duration>4</duration></note>"
    voice = [xml_note("C", 4, 4), xml_note("D", 4, 4)]
    empty = {"Tacet": [rests] * 2, "Drums": ["<note><unpitched/><duration>4</duration></note>"] * 2}
    data = score({**empty, "Voice": voice})
    assert pitches(only("a.xml", data)) == [C, D]
    assert pitches(only("a.xml", data, "1")) == [C, D]
    silent = rejection("a.xml", data, "Drums")
    assert (silent.reason, silent.detail) == ("no notes", "none in Drums")
    left_hand = rests.replace("</note>", "<staff>2</staff></note>")
    piano = [note + "<backup><duration>4</duration></backup>" + left_hand for note in voice]
    assert pitches(only("a.xml", score({"Piano": piano}))) == [C, D]
    assert pitches(only("a.xml", score({"Piano": piano}), "Piano")) == [C, D]
    cues = [xml_note("G", 5, 4, inside="<cue/>")] * 2
    assert pitches(only("a.xml", score({"Voice": voice, "Cues": cues}))) == [C, D]


def test_on_a_staff_of_percussion_pitches_are_no_notes() -> None:
    def clef(sign: str, staff: int = 1) -> str:
        return f'<attributes><clef number="{staff}"><sign>{sign}</sign></clef></attributes>'

    voice, drums = ([xml_note(step, 4, 4)] * 2 for step in "CF")
    beaten = [clef("percussion").replace(' number="1"', "") + drums[0], drums[1]]
    assert pitches(only("a.xml", score({"Voice": voice, "Drums": beaten}))) == [C, C]
    alone = rejection("a.xml", score({"Drums": beaten}))
    assert (alone.reason, alone.detail) == ("no notes", "percussion only")
    both = [clef("percussion") + drums[0], clef("G") + drums[1]]
    assert pitches(only("a.xml", score({"Both": both}))) == [F, F]
    lower = xml_note("F", 4, 4, after="<staff>2</staff>")
    two = [
        clef("G") + clef("percussion", 2) + n + "<backup><duration>4</duration></backup>" + lower
        for n in voice
    ]
    assert pitches(only("a.xml", score({"Two": two}))) == [C, C]


def test_notes_for_one_time_through_a_repeat_are_played_then() -> None:
    def only_in(turns: str, step: str) -> str:
        return xml_note(step, 4, 4).replace("<note>", f'<note time-only="{turns}">')

    back = "<backup><duration>4</duration></backup>"
    first = xml_note("C", 4, 4) + START
    second = only_in("1", "D") + back + only_in("2,3", "E") + back + only_in("2", "E") + played(3)
    assert pitches(only("a.xml", score({"Voice": [first, second]}))) == [C, D, C, E, C, E]
    both = only_in("1", "D") + back + xml_note("D", 4, 4) + END
    assert pitches(only("a.xml", score({"Voice": [first, both]}))) == [C, D, C, D]


def test_ties_that_go_on_and_voices_in_unison() -> None:
    def tied(kind: str) -> str:
        return xml_note("C", 4, 4, after=f'<notations><tied type="{kind}"/></notations>')

    song = only("a.xml", score({"Voice": [tied("start"), tied("continue"), tied("stop")]}))
    assert song.notes == (Note(Fraction(0), Fraction(6), C),)
    back = "<backup><duration>4</duration></backup>"
    unison = xml_note("C", 4, 4) + back + xml_note("C", 4, 4)
    other = xml_note("C", 4, 4) + back + xml_note("C", 4, 2) + xml_note("E", 4, 2)
    song = only("a.xml", score({"Voice": [unison, other]}))
    assert [bar.reason for bar in to_grid(song)] == [None, "chord"]
    for first, second in (
        (tied("start"), xml_note("C", 4, 4)),
        (xml_note("C", 4, 4), tied("start")),
    ):
        song = only("a.xml", score({"Voice": [first + back + second, tied("stop")]}))
        assert song.notes == (Note(Fraction(0), Fraction(4), C),)


def test_rounded_durations_of_tuplets_leave_bars_whole_and_notes_tied() -> None:
    divisions = "<attributes><divisions>256</divisions></attributes>"
    triplet = "".join(xml_note(step, 4, 85) for step in "CDE")
    tie = [f'<tie type="{kind}"/>' for kind in ("start", "stop")]
    first = divisions + triplet + xml_note("F", 4, 256, after=tie[0])
    song = only("a.xml", score({"Voice": [first, xml_note("F", 4, 512, after=tie[1])]}))
    assert lengths(song) == [2, 2]
    assert [(n.pitch, n.duration) for n in song.notes[3:]] == [(F, 3 + Fraction(1, 256))]
    assert [bar.reason for bar in to_grid(song, 12)] == [None, None]


def test_durations_in_odd_divisions_are_whole_ticks() -> None:
    odd = "<attributes><divisions>7919</divisions></attributes>"
    measure = odd + xml_note("C", 4, 1) + xml_note("D", 4, 15837)
    song = only("a.xml", score({"Voice": [measure]}))
    assert [note.duration * 40320 for note in song.notes] == [5, 80635]
    assert lengths(song) == [2]


def test_notes_without_a_duration_are_as_long_as_they_are_printed() -> None:
    def printed(step: str, about: str) -> str:
        return xml_note(step, 4, 0, after=about)

    third = "<time-modification><actual-notes>3</actual-notes><normal-notes>2</normal-notes>"
    third = f"<type>eighth</type>{third}</time-modification>"
    dotted = printed("C", "<type>quarter</type><dot/>") + printed("D", "<type>eighth</type>")
    tuplet = "".join(printed(step, third) for step in "CDE") + xml_note("F", 4, 2)
    song = only("a.xml", score({"Voice": [dotted, tuplet]}))
    assert [str(note.duration) for note in song.notes] == ["3/2", "1/2", "1/3", "1/3", "1/3", "1"]
    assert lengths(song) == [2, 2]


def test_divisions_that_stand_after_the_first_notes_hold_for_them() -> None:
    divisions = "<attributes><divisions>64</divisions></attributes>"
    first = xml_note("C", 4, 128) + divisions
    data = score({"Voice": [first, xml_note("D", 4, 128)]})
    data = data.replace(b"<divisions>2</divisions>", b"")
    assert lengths(only("a.xml", data)) == [2, 2]


def test_a_segno_at_a_bar_line() -> None:
    sign = line("<segno/>", "left")
    assert play(["C", f"D{sign}", f"E{words('D.S.')}"]) == [C, D, E, D, E]


def test_of_several_segnos_the_one_that_is_named_is_gone_back_to() -> None:
    first, second = (f'{SEGNO}<sound segno="{name}"/>' for name in "ab")
    for name, back_to in (("a", [D, E, F]), ("b", [E, F]), ("x", [D, E, F])):
        back = f'<sound dalsegno="{name}"/>'
        assert play([f"C{first}", f"D{second}", "E", f"F{back}"]) == [C, D, E, F, *back_to]
    unnamed = ['C<sound tempo="60"/>', f"D{SEGNO}", "E", f"F{words('D.S.')}"]
    assert play(unnamed) == [C, D, E, F, E, F]


def test_values_that_are_no_numbers_are_none() -> None:
    measures = ['<sound tempo="120,5"/>' + xml_note("C", 4, 4), xml_note("D", 4, 4)]
    assert only("a.xml", score({"Voice": measures})).tempo == 120.5
    measures[0] = measures[0].replace("120,5", "fast")
    assert only("a.xml", score({"Voice": measures})).tempo == 120
    torn = rejection("a.xml", score({"Voice": measures})[:-30])
    assert torn.detail.startswith("not well-formed XML: ")


def test_a_staff_has_its_own_meter_and_transposition() -> None:
    def both(tag: str) -> str:
        return "".join(f'<{tag} number="{n}"><chromatic>{-n}</chromatic></{tag}>' for n in (1, 2))

    measure = f"<attributes>{both('transpose')}</attributes>" + "".join(
        xml_note("C", 4, 4, after=f"<staff>{n}</staff>") + "<backup><duration>4</duration></backup>"
        for n in (1, 2)
    )
    data = score({"Two": [measure, measure]})
    assert pitches(only("a.xml", data, "1")) == [59, 59]
    assert pitches(only("a.xml", data, "2")) == [58, 58]


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("<beats>3+2</beats><beat-type>8</beat-type>", "5/8"),
        ("<beats>3</beats><beat-type>8</beat-type><beats>2</beats><beat-type>4</beat-type>", "7/8"),
        ("<beats>6</beats><beat-type>8</beat-type>", "6/8"),
        ("<senza-misura/>", "none"),
        ("<beats>x</beats><beat-type>0</beat-type>", "2/4"),
    ],
)
def test_meters(time: str, expected: str) -> None:
    change = f"<attributes><time>{time}</time></attributes>"
    song = only("a.xml", score({"Voice": [xml_note("C", 4, 4), change + xml_note("D", 4, 4)]}))
    assert [bar.meter for bar in song.bars] == ["2/4", expected]


def metronome(inside: str) -> str:
    mark = f"<direction-type><metronome>{inside}</metronome></direction-type>"
    return f"<direction>{mark}</direction>"


@pytest.mark.parametrize(
    ("inside", "tempo"),
    [
        ("<beat-unit>quarter</beat-unit><per-minute>76</per-minute>", 76),
        ("<beat-unit>half</beat-unit><per-minute>60</per-minute>", 120),
        ("<beat-unit>quarter</beat-unit><beat-unit-dot/><per-minute>60</per-minute>", 90),
        ("<beat-unit>eighth</beat-unit><per-minute>c. 132-144</per-minute>", 66),
        ("<beat-unit>quarter</beat-unit><beat-unit>eighth</beat-unit>", 120),
        ("<beat-unit>64th</beat-unit><per-minute>960</per-minute>", 60),
        (
            "<beat-unit>half</beat-unit><beat-unit-tied><beat-unit>eighth</beat-unit>"
            "</beat-unit-tied><per-minute>40</per-minute>",
            100,  # 40 times five eighths
        ),
        ("<beat-unit>long</beat-unit><per-minute>10</per-minute>", 160),
        ("<beat-unit>moon</beat-unit><per-minute>10</per-minute>", 120),
        ("<beat-unit>quarter</beat-unit><per-minute>fast</per-minute>", 120),
    ],
)
def test_metronome_marks(inside: str, tempo: float) -> None:
    measures = [metronome(inside) + xml_note("C", 4, 4), xml_note("D", 4, 4)]
    assert only("a.xml", score({"Voice": measures})).tempo == tempo


def test_tempos_hold_from_where_they_stand_whatever_part_says_so() -> None:
    upper = [xml_note("C", 5, 4), xml_note("C", 5, 2) + '<sound tempo="60"/>' + xml_note("C", 5, 2)]
    lower = [xml_note("C", 4, 4), xml_note("D", 4, 4)]
    song = only("a.xml", score({"Flute": upper, "Horn": lower}), "Horn")
    assert [song.tempo_at(Fraction(n)) for n in range(5)] == [120, 120, 120, 60, 60]
    lower[1] = '<sound tempo="90"/>' + lower[1]
    song = only("a.xml", score({"Flute": upper, "Horn": lower}), "Horn")
    assert [song.tempo_at(Fraction(n)) for n in range(5)] == [120, 120, 90, 60, 60]
    back = "<backup><duration>2</duration></backup>"
    voices = xml_note("C", 4, 2) + f'<sound tempo="60"/>{back}<sound tempo="90"/>'
    song = only("a.xml", score({"Flute": [voices + xml_note("C", 4, 4)]}))
    assert [song.tempo_at(Fraction(n)) for n in range(2)] == [90, 60]


@pytest.mark.parametrize(
    ("direction", "start"),
    [
        ('<sound tempo="60"><offset>2</offset></sound>', 3),
        ('<sound tempo="60"><offset>-2</offset></sound>', 1),
        ('<direction><offset sound="yes">2</offset><sound tempo="60"/></direction>', 3),
        ('<direction><offset>2</offset><sound tempo="60"/></direction>', 2),  # of the print alone
    ],
)
def test_a_tempo_may_be_heard_beside_its_place(direction: str, start: int) -> None:
    long = "<attributes><time><beats>4</beats><beat-type>4</beat-type></time></attributes>"
    song = only(
        "a.xml", score({"Voice": [long + xml_note("C", 4, 4) + direction + xml_note("D", 4, 4)]})
    )
    assert [(float(tempo.start), tempo.speed) for tempo in song.tempos] == [(start, 60)]


def style(kind: str, count: int) -> str:
    sign = f'<measure-repeat type="{kind}">{count}</measure-repeat>'
    return f"<attributes><measure-style>{sign}</measure-style></attributes>"


REST = '<note><rest measure="yes"/><duration>4</duration></note>'


def test_signs_that_repeat_measures_are_played() -> None:
    one = [xml_note("C", 4, 4), style("start", 1) + REST, REST, style("stop", 1) + REST]
    song = only("a.xml", score({"Voice": [*one, xml_note("D", 4, 4)]}))
    assert [(float(n.onset), n.pitch) for n in song.notes] == [(0, C), (2, C), (4, C), (8, D)]
    two = [xml_note("C", 4, 4), xml_note("D", 4, 4), style("start", 2) + REST, REST]
    assert pitches(only("a.xml", score({"Voice": two}))) == [C, D, C, D]
    early = [style("start", 9) + REST, xml_note("C", 4, 4)]
    assert pitches(only("a.xml", score({"Voice": early}))) == [C]


def test_time_signatures_of_another_part_hold_for_one_that_has_none() -> None:
    measures = [xml_note("C", 4, 4), xml_note("D", 4, 4)]
    before, after = score({"Flute": measures, "Horn": measures}).rsplit(b"<time>", 1)
    song = only("a.xml", before + after.split(b"</time>", 1)[1], "Horn")
    assert [bar.meter for bar in song.bars] == ["2/4", "2/4"]
    assert lengths(song) == [2, 2]


def test_a_measure_in_which_a_part_has_nothing_is_as_long_as_in_the_others() -> None:
    piano = [xml_note("C", 3, 1), xml_note("C", 3, 4), xml_note("D", 3, 4)]
    for silent in ("", '<direction><sound tempo="60"/></direction>'):
        voice = [silent, xml_note("E", 4, 4), ""]
        song = only("a.xml", score({"Voice": voice, "Piano": piano}), "Voice")
        assert lengths(song) == [Fraction(1, 2), 2, 2]
        assert song.notes == (Note(Fraction(1, 2), Fraction(2), E),)


def test_scores_of_measures_with_parts() -> None:
    """A time-wise score: each measure holds what each part plays."""
    data = score({"Voice": SONG, "Horn": [xml_note("E", 4, 4)] * 3}).decode()
    head, *parts = re.split("<part id", data.replace("score-partwise", "score-timewise"))
    columns = [re.findall('<measure number="[0-9]">(.*?)</measure>', part) for part in parts]
    measures = "".join(
        f'<measure><part id="P0">{voice}</part><part id="P1">{horn}</part></measure>'
        for voice, horn in zip(*columns, strict=True)
    )
    timewise = f"{head}{measures}</score-timewise>".encode()
    assert only("a.xml", timewise, "Voice") == only("a.xml", data.encode(), "Voice")
    assert pitches(only("a.xml", timewise, "Horn")) == [E, E, E]
    silent = timewise.replace(f'<part id="P1">{columns[1][1]}</part>'.encode(), b"", 1)
    assert [float(note.onset) for note in only("a.xml", silent, "Horn").notes] == [0, 4]


def test_a_namespace_makes_no_difference() -> None:
    data = score({"Voice": SONG})
    default = data.replace(b"<score-partwise", b'<score-partwise xmlns="urn:x"')
    prefixed = re.sub(rb"<(/?)(?=[a-z])", rb"<\1m:", data)
    named = prefixed.replace(b"<m:score-partwise", b'<m:score-partwise xmlns:m="urn:x"')
    assert only("a.xml", default) == only("a.xml", named) == only("a.xml", data)


def test_titles_on_two_lines_and_empty_lines_before_the_declaration() -> None:
    data = score({"Voice": SONG})
    assert only("a.xml", data.replace(b"A Song", b" A\n  Song ")).title == "A Song"
    movement = b"<work-title> </work-title></work><movement-title>Two</movement-title>"
    two = data.replace(b"<work-title>A Song</work-title></work>", movement)
    assert only("a.xml", two).title == "Two"
    assert only("a.xml", b"\r\n " + data) == only("a.xml", data)
    printed = "".join(
        f"<credit><credit-type>{kind}</credit-type>{words}</credit>"
        for kind, words in (
            ("composer", "<credit-words>A. Nonymous</credit-words>"),
            ("title", "<credit-words>Printed\n</credit-words><credit-words>Song</credit-words>"),
        )
    )
    alone = data.replace(b"<work><work-title>A Song</work-title></work>", printed.encode())
    assert only("a.xml", alone).title == "Printed Song"


def test_encodings() -> None:
    data = score({"Voice": SONG}).replace(b"A Song", "Caf\xe9".encode())
    text = data.decode().replace('encoding="UTF-8"', 'encoding="{}"')
    for encoding in ("utf-16", "utf-8-sig", "iso-8859-1", "windows-1252"):
        named = text.replace("{}", encoding.removesuffix("-sig"))
        assert only("a.xml", named.encode(encoding)).title == "Caf\xe9"
    for wrongly in ("utf-16", "UTF-16LE"):
        assert only("a.xml", text.replace("{}", wrongly).encode()).title == "Caf\xe9"
    for unmarked in ("utf-16-le", "utf-16-be"):
        assert only("a.xml", text.replace("{}", unmarked).encode(unmarked)).title == "Caf\xe9"
    for encoding, title in (
        ("Shift_JIS", "\u6b4c"),
        ("windows-1250", "\u0159"),
        ("GB2312", "\u6b4c"),
    ):
        abroad = text.replace("{}", encoding).replace("Caf\xe9", title)
        assert only("a.xml", abroad.encode(encoding)).title == title
    strange = rejection("a.xml", text.replace("{}", "cp037").encode())
    assert (strange.reason, "cp037" in strange.detail) == ("unreadable", True)
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]>'
    hidden = score({"Voice": SONG}, bomb).decode().encode("utf-16")
    assert rejection("a.xml", hidden).detail == "defines XML entities"


def compressed(content: bytes, name: str = "score.xml", padding: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        root = f'<container><rootfiles><rootfile full-path="{name}"/></rootfiles></container>'
        archive.writestr("META-INF/container.xml", root + " " * padding)
        archive.writestr(name, content)
    return stream.getvalue()


def archive(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members:
            opened.writestr(name, content)
    return stream.getvalue()


def container(*names: str) -> tuple[str, bytes]:
    files = "".join(f"<rootfile full-path='{name}' media-type='x'/>" for name in names)
    return "META-INF/container.xml", f"<c xmlns='urn:x'><rootfiles>{files}</rootfiles></c>".encode()


def test_compressed_musicxml() -> None:
    data = score({"Voice": SONG})
    plain, other = only("a.xml", data), b"<html/>"
    odd_names = ("./sub/a.xml", "/sub/a.xml", "sub\\a.xml")
    assert only("a.mxl", compressed(data, "../../etc/score.xml")) == plain
    for members in (
        [container("a.xml", "b.pdf"), ("a.xml", data), ("b.xml", other)],
        [container("a%20b.xml"), ("a b.xml", data), ("b.xml", other)],
        [("META-INF/container.xml", b"<c"), ("a.musicxml", data), ("b.png", other)],
        [container("gone.xml"), ("__MACOSX/._a.xml", other), ("a.xml", data)],
        [("a.xml", data), ("._a.xml", other)],
        *([container(name), ("sub/a.xml", data), ("b.xml", other)] for name in odd_names),
    ):
        assert only("a.mxl", archive(*members)) == plain
    two = rejection("a.mxl", archive(("a.xml", data), ("b.xml", data)))
    assert (two.reason, two.detail) == (
        "unreadable",
        "its container names none of 1 'a.xml', 2 'b.xml'",
    )


def test_members_in_utf_8_without_the_flag_are_found() -> None:
    data = score({"Voice": SONG})
    packed = archive(container("F\xfcr.xml"), ("F\xfcr.xml", data), ("x.xml", b"<html/>"))
    flagged = b"\x00\x08\x08\x00"
    assert packed.count(flagged) == 2
    assert only("a.mxl", packed.replace(flagged, b"\x00\x00\x08\x00")) == only("a.xml", data)


@pytest.mark.parametrize(
    ("right", "wrong", "tag"),
    [
        ("<duration>2<", "<duration>two<", "duration"),
        ("<divisions>2<", "<divisions>1e999999999<", "divisions"),
        ("<octave>4<", "<octave>1/2<", "octave"),
        ("</step>", "</step><alter>inf</alter>", "alter"),
    ],
)
def test_what_should_be_a_number_and_is_none_is_named(right: str, wrong: str, tag: str) -> None:
    data = score({"Voice": SONG}).replace(right.encode(), wrong.encode())
    found = rejection("a.xml", data)
    assert (found.reason, found.detail.split(":")[0]) == ("unreadable", f"<{tag}> holds no number")


def test_hostile_musicxml_is_refused() -> None:
    odd = "<attributes><divisions>11</divisions></attributes>" + xml_note("C", 4, 2201)
    assert rejection("a.xml", score({"Voice": [odd]})).detail == "a bar of 200 quarter notes"
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
