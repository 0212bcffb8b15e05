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

Event = tuple[int, mido.Message | mido.MetaMessage]


def sound(onset: int, end: int, pitch: int, velocity: int = 80, channel: int = 0) -> list[Event]:
    common = {"note": pitch, "channel": channel}
    return [
        (onset, mido.Message("note_on", velocity=velocity, **common)),
        (end, mido.Message("note_off", **common)),
    ]


def meter(tick: int, beats: int, unit: int) -> Event:
    return tick, mido.MetaMessage("time_signature", numerator=beats, denominator=unit)


def midi(*tracks: Sequence[Event], quarter: int = 480) -> bytes:
    file = mido.MidiFile(ticks_per_beat=quarter)
    for events in tracks:
        track = mido.MidiTrack()
        now = 0
        for tick, message in sorted(events, key=lambda e: (e[0], e[1].type == "note_on")):
            track.append(message.copy(time=tick - now))
            now = tick
        file.tracks.append(track)
    stream = io.BytesIO()
    file.save(file=stream)
    return stream.getvalue()


def only(name: str, data: bytes, part: str | None = None) -> Melody:
    (song,) = read_melodies(name, data, part)
    assert isinstance(song, Melody), song
    return song


def rejection(name: str, data: bytes, part: str | None = None) -> Rejected:
    (song,) = read_melodies(name, data, part)
    assert isinstance(song, Rejected), song
    return song


def pitches(song: Melody) -> list[int]:
    return [note.pitch for note in song.notes]


def lengths(song: Melody) -> list[Fraction]:
    return [bar.length for bar in song.bars]


# ---- MIDI --------------------------------------------------------------------------------------


def test_midi_notes_bars_and_tempo() -> None:
    head: list[Event] = [meter(0, 3, 4), (0, mido.MetaMessage("set_tempo", tempo=400_000))]
    song = only("folder/tune.mid", midi([*head, *sound(480, 720, 60), *sound(720, 1440, 62)]))
    assert song.id == "tune"
    assert song.tempo == 150
    assert song.notes == (
        Note(Fraction(1), Fraction(1, 2), 60),
        Note(Fraction(3, 2), Fraction(3, 2), 62),
    )
    assert song.bars == (Bar(Fraction(0), Fraction(3), "3/4"),)


def test_midi_without_meter_or_tempo_is_in_common_time_at_120() -> None:
    song = only("a.mid", midi(sound(0, 2400, 60)))
    assert (song.tempo, [bar.meter for bar in song.bars]) == (120, ["4/4", "4/4"])


def test_the_melody_is_the_first_track_without_chords() -> None:
    empty: list[Event] = [meter(0, 4, 4)]
    tune = [e for i in range(8) for e in sound(480 * i, 480 * i + 480, 60 + i)]
    drums = [e for i in range(8) for e in sound(480 * i, 480 * i + 480, 36, channel=9)]
    chord = [e for i in range(8) for p in (48, 52, 55) for e in sound(480 * i, 480 * i + 480, p)]
    for tracks in ([empty, tune, chord], [empty, drums, chord, tune], [[*empty, *drums, *tune]]):
        assert pitches(only("a.mid", midi(*tracks))) == list(range(60, 68))
    assert rejection("a.mid", midi(empty, chord)).reason == "no melody track"
    assert pitches(only("a.mid", midi(empty, tune, chord), "2"))[:3] == [48, 52, 55]
    assert rejection("a.mid", midi(empty, tune, chord), "3").reason == "no such part"
    assert rejection("a.mid", midi(empty, drums)).reason == "no notes"


message = st.one_of(
    st.builds(
        mido.Message,
        st.sampled_from(["note_on", "note_off"]),
        channel=st.integers(0, 10),
        note=st.integers(60, 64),
        velocity=st.integers(0, 127),
        time=st.integers(0, 40_000),
    ),
    st.builds(mido.Message, st.just("program_change"), program=st.integers(0, 127)),
    st.builds(mido.Message, st.just("pitchwheel"), pitch=st.integers(-8192, 8191)),
    st.builds(mido.Message, st.just("sysex"), data=st.lists(st.integers(0, 127), max_size=200)),
    st.builds(mido.MetaMessage, st.just("text"), text=st.text("ab", max_size=200)),
    st.builds(mido.MetaMessage, st.just("set_tempo"), tempo=st.integers(1, 2**24 - 1)),
    st.builds(
        mido.MetaMessage,
        st.just("time_signature"),
        numerator=st.integers(1, 255),
        denominator=st.sampled_from([1, 4, 64]),
        time=st.integers(0, 40_000),
    ),
)


@given(st.lists(st.lists(message, max_size=30), max_size=3), st.integers(1, 2**15 - 1))
def test_midi_files_are_read_as_mido_reads_them(
    tracks: list[list[mido.Message]], quarter: int
) -> None:
    file = mido.MidiFile(ticks_per_beat=quarter, tracks=[mido.MidiTrack(t) for t in tracks])
    stream = io.BytesIO()
    file.save(file=stream)
    found, chunks = parse(stream.getvalue())
    assert (found, len(chunks)) == (quarter, len(tracks))
    for chunk, track in zip(chunks, mido.MidiFile(file=io.BytesIO(stream.getvalue())).tracks):  # noqa: B905
        now, sounding = 0, dict[tuple[int, int], tuple[int, int]]()
        notes: dict[int, list[tuple[int, int, int, int]]] = {}
        meters, tempo = {}, 0
        for event in track:
            now += event.time
            if event.type == "time_signature":
                meters[now] = f"{event.numerator}/{event.denominator}"
            elif event.type == "set_tempo":
                tempo = tempo or event.tempo
            elif event.type in ("note_on", "note_off") and event.channel != 9:
                key = event.channel, event.note
                onset, velocity = sounding.pop(key, (now, 0))
                if onset < now:
                    notes.setdefault(key[0], []).append((onset, now, key[1], velocity))
                if event.type == "note_on" and event.velocity:
                    sounding[key] = now, event.velocity
        assert chunk == Chunk("", {c: sorted(notes[c]) for c in sorted(notes)}, meters, tempo)


def test_midi_with_running_status_alien_chunks_and_absurd_lengths() -> None:
    head = b"MThd\0\0\0\6\0\1\0\1\1\xe0"
    body = (
        b"\0\xff\x58\4\2\2\x18\x08\0\x90\x3c\x50\x83\x60\x3c\0\0\x3e\x50\x83\x60\x3e\0\0\xff\x2f\0"
    )

    def track(content: bytes, name: bytes = b"MTrk") -> bytes:
        return name + len(content).to_bytes(4) + content

    whole = head + track(b"anything", b"XFIH") + track(body)
    notes = (Note(Fraction(0), Fraction(1), 60), Note(Fraction(1), Fraction(1), 62))
    for data, expected in (
        (whole, notes),
        (head + track(b"\0\xff\x7f\x81\0" + bytes(128) + body), notes),
        (head + track(body[:-4] + b"\0\xf0\x02\x7e\xf7" + body[-4:]), notes),
        (head + track(body + b"\xff\xff\xff\xff\x7f"), None),
        (head + track(b"\0\xff\x01\xff\xff\xff\x7f" + body), None),
        (head + track(body[10:]), None),
        (whole[:-1], None),
        (head + b"MTrk\xff\xff\xff\xff" + body, None),
    ):
        (song,) = read_melodies("a.mid", data)
        if expected is None:
            assert isinstance(song, Rejected)
            assert song.reason == "unreadable"
        else:
            assert isinstance(song, Melody)
            assert song.notes == expected


def test_songs_of_absurd_length_are_refused_before_they_are_put_on_a_grid() -> None:
    long = midi([meter(0, 255, 1), *sound(0, 480, 60), *sound(480 * 50_000, 480 * 50_001, 62)])
    assert rejection("a.mid", long).reason == "too large"
    assert rejection("a.abc", (HEAD + "C4|D999999999|\n").encode()).reason == "too large"
    assert rejection("a.abc", b"X:1\n" * (readers.MAX_TUNES + 1)).reason == "too large"
    score_of_bars = score({"Voice": [xml_note("C", 4, 4), xml_note("D", 4, 10**9)]})
    assert rejection("a.xml", score_of_bars).reason == "too large"
    tags = b"<a/>" * (readers.MAX_TAGS + 1)
    assert rejection("a.xml", tags).reason == "too large"


def accented(pickup: int, accent: int) -> bytes:
    """Four bars of eighths in 2/4 after a pickup of so many eighths, one tick late."""
    events = [meter(0, 2, 4)]
    for i in range(pickup + 16):
        velocity = accent if (i - pickup) % 4 == 0 or i == 0 else 80
        events += sound(240 * i + 1, 240 * i + 240, 60 + i % 4, velocity)
    return midi(events)


def test_accents_show_where_bars_begin_after_an_unpadded_pickup() -> None:
    song = only("a.mid", accented(1, 105))
    assert [bar.start for bar in song.bars] == [
        0,
        Fraction(1, 2),
        Fraction(5, 2),
        Fraction(9, 2),
        Fraction(13, 2),
    ]
    assert [bar.reason for bar in grid(song)] == ["short bar", None, None, None, None]
    assert only("a.mid", accented(0, 105)).bars[0].length == 2
    without_accents = only("a.mid", accented(1, 80))
    assert [bar.start for bar in without_accents.bars] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("bars", [2, 8])
def test_one_loudest_note_shows_no_pickup(bars: int) -> None:
    events = [meter(0, 2, 4)]
    for i in range(4 * bars):
        events += sound(240 * i, 240 * i + 240, 60 + i % 4, 110 if i == 3 else 70 + i % 7)
    assert [bar.start for bar in only("a.mid", midi(events)).bars] == [2 * i for i in range(bars)]


def test_accents_count_only_up_to_the_next_time_signature() -> None:
    events = [meter(0, 4, 4), meter(480, 2, 4)]
    for i in range(13):
        events += sound(480 * i, 480 * i + 480, 60 + i % 4, 105 if i % 4 == 3 else 80)
    song = only("a.mid", midi(events))
    assert [bar.start for bar in song.bars] == [0, 1, 3, 5, 7, 9, 11]
    assert lengths(song) == [1, 2, 2, 2, 2, 2, 2]


def test_every_time_signature_starts_a_bar() -> None:
    events = [meter(0, 1, 8), meter(240, 3, 4), meter(1680, 2, 4), meter(2160, 3, 4)]
    song = only("a.mid", midi([*events, *sound(0, 240, 60), *sound(2160, 3600, 62)]))
    assert [(b.start, b.length, b.meter) for b in song.bars] == [
        (0, Fraction(1, 2), "1/8"),
        (Fraction(1, 2), 3, "3/4"),
        (Fraction(7, 2), 1, "2/4"),
        (Fraction(9, 2), 3, "3/4"),
    ]
    assert [bar.reason for bar in grid(song)] == [None, None, "short bar", None]


def test_time_signatures_are_those_of_the_melody_track_if_it_has_any() -> None:
    tune = [e for i in range(12) for e in sound(480 * i, 480 * i + 480, 60 + i % 4)]
    chords = [e for p in (48, 52, 55) for e in sound(0, 5760, p)]
    others = [meter(0, 4, 4), meter(2400, 3, 4)]

    def bars(*tracks: Sequence[Event]) -> list[tuple[float, float, str]]:
        song = only("a.mid", midi(*tracks))
        return [(float(bar.start), float(bar.length), bar.meter) for bar in song.bars]

    own = [(0, 4, "4/4"), (4, 4, "4/4"), (8, 2, "2/4"), (10, 2, "2/4")]
    assert bars([meter(0, 4, 4), meter(3840, 2, 4), *tune], [*others, *chords]) == own
    assert bars(others, [meter(3840, 2, 4), *tune]) == own
    shared = [(0, 4, "4/4"), (4, 1, "4/4"), (5, 3, "3/4"), (8, 3, "3/4"), (11, 3, "3/4")]
    assert bars(others, tune) == bars(tune, [*others, *chords]) == shared


def test_a_pitch_struck_while_it_sounds_ends_there() -> None:
    events = [(0, mido.Message("note_on", note=60)), *sound(480, 960, 60)]
    song = only("a.mid", midi([meter(0, 2, 4), *events]))
    assert song.notes == (Note(Fraction(0), Fraction(1), 60), Note(Fraction(1), Fraction(1), 60))


def test_absurd_midi_files_are_refused() -> None:
    assert rejection("a.mid", midi(sound(0, 2**28 - 1, 60), quarter=1)).reason == "too large"
    assert rejection("a.mid", midi([meter(0, 4, 128), *sound(0, 9, 60)])).reason == "unreadable"
    assert rejection("a.mid", bytes(2**20 + 1)).reason == "too large"
    assert rejection("a.mid", b"").reason == "unreadable"
    assert rejection("a.txt", b"X:1").reason == "unreadable"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_midi_never_raises(data: st.DataObject) -> None:
    content = bytearray(accented(1, 105))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for song in read_melodies("a.mid", bytes(content[:cut])):
        assert isinstance(song, Melody | Rejected)


# ---- ABC ---------------------------------------------------------------------------------------

HEAD = "X:1\nT:A Tune\nM:4/4\nL:1/4\nK:C\n"
C, D, E, G = 60, 62, 64, 67
A, B = 69, 71


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
    assert [bar.reason for bar in grid(song)] == [None, "chord", None]


def test_abc_books_number_their_tunes() -> None:
    book = "M:4/4\nL:1/4\n\nX:1\nK:C\nC4|D4|\n\nX:007\nT:Other\nK:C\nE4|G4|\n"
    songs = [s for s in read_melodies("book.abc", book.encode()) if isinstance(s, Melody)]
    assert [(s.id, pitches(s)) for s in songs] == [("book:1", [C, D]), ("book:7", [E, G])]


def test_abc_that_gives_no_melody() -> None:
    assert rejection("a.abc", (HEAD + "z4|z4|\n").encode()).reason == "no notes"
    assert rejection("a.abc", b"\xff\xfe not abc").reason in ("unreadable", "no notes")
    room = readers.MAX_TUNE - len(HEAD)
    assert pitches(only("a.abc", (HEAD + f"C4|D4|\n{'%':{room - 8}}").encode())) == [C, D]
    assert rejection("a.abc", (HEAD + f"C4|D4|\n{'%':{room - 7}}").encode()).reason == "too large"
    voices = (HEAD + "V:1\nC4|D4|\nV:2\nE4|G4|\n").encode()
    assert rejection("a.abc", voices).reason == "several parts"
    assert pitches(only("a.abc", voices, "2")) == [E, G]


def test_repeats_without_end_are_read_as_written() -> None:
    song = only("a.abc", (HEAD + "|:C4:|" * 400 + "\n").encode())
    assert len(song.bars) == 400


# ---- MusicXML ----------------------------------------------------------------------------------


def xml_note(step: str, octave: int, duration: int, inside: str = "", after: str = "") -> str:
    pitch = f"<pitch><step>{step}</step><octave>{octave}</octave></pitch>"
    length = f"<duration>{duration}</duration>" if duration else ""
    return f"<note>{inside}{pitch}{length}{after}</note>"


def score(parts: dict[str, list[str]], doctype: str = "") -> bytes:
    """A score in 2/4 with two divisions per quarter; parts by name, each a list of measures."""
    listed = "".join(
        f'<score-part id="P{i}"><part-name>{name}</part-name></score-part>'
        for i, name in enumerate(parts)
    )
    attributes = (
        "<attributes><divisions>2</divisions>"
        "<time><beats>2</beats><beat-type>4</beat-type></time></attributes>"
    )
    bodies = "".join(
        f'<part id="P{i}">'
        + "".join(
            f'<measure number="{number}">{attributes if number == 0 else ""}{measure}</measure>'
            for number, measure in enumerate(measures)
        )
        + "</part>"
        for i, measures in enumerate(parts.values())
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{doctype}<score-partwise version="3.1">'
        "<work><work-title>A Song</work-title></work>"
        f"<part-list>{listed}</part-list>{bodies}</score-partwise>"
    ).encode()


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


# ---- files -------------------------------------------------------------------------------------


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
