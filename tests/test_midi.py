import io
from collections.abc import Sequence
from fractions import Fraction
from random import Random

import mido
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cf_core.grid import to_grid
from cf_core.melody import Bar, Melody, Note
from cf_core.readers import Rejected, read_melodies
from cf_core.readers.limits import MAX_TAGS, MAX_TUNES
from cf_core.readers.midi import Chunk, parse
from tests.melodies import (
    HEAD,
    Event,
    lengths,
    meter,
    midi,
    only,
    pitches,
    rejection,
    score,
    sound,
    xml_note,
)


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
    drums_only = rejection("a.mid", midi(empty, drums))
    assert (drums_only.reason, drums_only.detail) == ("no notes", "percussion only")


@st.composite
def keys(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Notes of some keys as `(onset, end, pitch)`: each struck anew after the end, on it or before.

    Where a key is struck before it was released, the release comes some ticks late.
    """
    notes = []
    for pitch in draw(st.lists(st.integers(0, 127), max_size=4, unique=True)):
        onset = draw(st.integers(0, 1000))
        for gap in draw(st.lists(st.integers(-3, 50), min_size=1, max_size=8)):
            end = onset + draw(st.integers(4, 1000))
            notes.append((onset, end, pitch))
            onset = end + gap
    return notes


@given(keys(), st.randoms(use_true_random=False), st.integers(0, 8))
def test_every_key_pressed_is_a_note(
    notes: list[tuple[int, int, int]], chance: Random, channel: int
) -> None:
    events = [e for onset, end, pitch in notes for e in sound(onset, end, pitch, 80, channel)]
    # Events of one tick come in any order.
    chance.shuffle(events)
    _, (chunk,) = parse(midi(events, shuffled=True))
    starts = sorted({(onset, pitch) for onset, _, pitch in notes})
    expected = []
    for onset, end, pitch in notes:
        struck = [other for other, same in starts if same == pitch and other > onset]
        expected.append((onset, min([end, *struck]), pitch, 80))
    assert chunk.notes == ({channel: sorted(expected)} if notes else {})


message = st.one_of(
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
def test_what_is_no_note_is_read_as_mido_reads_it(
    tracks: list[list[mido.Message]], quarter: int
) -> None:
    file = mido.MidiFile(ticks_per_beat=quarter, tracks=[mido.MidiTrack(t) for t in tracks])
    stream = io.BytesIO()
    file.save(file=stream)
    found, chunks = parse(stream.getvalue())
    assert (found, len(chunks)) == (quarter, len(tracks))
    for chunk, track in zip(chunks, mido.MidiFile(file=io.BytesIO(stream.getvalue())).tracks):  # noqa: B905
        now, meters, tempos = 0, {}, {}
        for event in track:
            now += event.time
            if event.type == "time_signature":
                meters[now] = f"{event.numerator}/{event.denominator}"
            elif event.type == "set_tempo":
                tempos[now] = event.tempo
        assert chunk == Chunk("", {}, meters, tempos)


def pressed(*events: tuple[int, str, int]) -> tuple[Note, ...]:
    """Notes of a file with `(tick, "on" or "off", pitch)` in this order."""
    messages = [(tick, mido.Message(f"note_{kind}", note=pitch)) for tick, kind, pitch in events]
    return only("a.mid", midi([meter(0, 4, 4), *messages], shuffled=True)).notes


def test_a_release_closes_no_note_that_begins_on_its_own_tick() -> None:
    two = (Note(Fraction(0), Fraction(1), 60), Note(Fraction(1), Fraction(3), 60))
    on_before_off = [(0, "on", 60), (480, "on", 60), (480, "off", 60), (1920, "off", 60)]
    late = [(0, "on", 60), (480, "on", 60), (482, "off", 60), (1920, "off", 60)]
    for events in (on_before_off, late):
        assert pressed(*events) == two
        assert pressed(*events, (1920, "on", 62), (1920, "on", 62), (2400, "off", 62))[:2] == two
    # One release for two strokes: the second stroke ends the first note.
    assert pressed((0, "on", 60), (480, "on", 60), (1920, "off", 60)) == two
    assert pressed(*on_before_off[:3], (960, "on", 60), (1920, "off", 60)) == (
        Note(Fraction(0), Fraction(1), 60),
        Note(Fraction(1), Fraction(1), 60),
        Note(Fraction(2), Fraction(2), 60),
    )
    unison = pressed((0, "on", 60), (0, "on", 60), (480, "off", 60), (960, "off", 60))
    assert unison == (Note(Fraction(0), Fraction(2), 60),)
    no_length = [(480, "on", 64), (480, "off", 64)]
    assert pressed((0, "on", 60), *no_length, (1920, "off", 60)) == (
        Note(Fraction(0), Fraction(4), 60),
    )


def test_a_key_that_is_never_released_sounds_to_the_end_of_its_track() -> None:
    def hold(*events: tuple[int, str, int]) -> tuple[Note, ...]:
        end = [(1920, mido.MetaMessage("text", text="the end"))]
        messages = [(tick, mido.Message(f"note_{kind}", note=p)) for tick, kind, p in events]
        return only("a.mid", midi([*messages, *end], shuffled=True)).notes

    first = Note(Fraction(0), Fraction(1), 60)
    head = [(0, "on", 60), (480, "off", 60)]
    assert hold(*head, (480, "on", 62)) == (first, Note(Fraction(1), Fraction(3), 62))
    assert hold(*head, (480, "on", 60)) == (first, Note(Fraction(1), Fraction(3), 60))
    assert hold(*head, (1920, "on", 60)) == (first,)


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
        (head + track(body + bytes(5)), notes),
        (head + track(body[:-4] + b"\xff\xff\xff\xff\x7f" + body[-4:]), None),
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
    assert rejection("a.abc", b"X:1\n" * (MAX_TUNES + 1)).reason == "too large"
    score_of_bars = score({"Voice": [xml_note("C", 4, 4), xml_note("D", 4, 10**9)]})
    assert rejection("a.xml", score_of_bars).reason == "too large"
    tags = b"<a/>" * (MAX_TAGS + 1)
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
    assert [bar.reason for bar in to_grid(song)] == ["short bar", None, None, None, None]
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
    assert [bar.reason for bar in to_grid(song)] == [None, None, "short bar", None]


@pytest.mark.parametrize("late", [-5, -1, 1, 5])
def test_a_time_signature_a_few_ticks_from_a_bar_line_stands_there(late: int) -> None:
    line = [e for i in range(10) for e in sound(480 * i, 480 * i + 480, 60 + i % 4)]
    events = [meter(max(late, 0), 4, 4), meter(1920 + late, 3, 4), *line]
    song = only("a.mid", midi(events))
    assert [bar.start for bar in song.bars] == [0, 4, 7]
    assert [bar.meter for bar in song.bars] == ["4/4", "3/4", "3/4"]
    assert [bar.reason for bar in to_grid(song)] == [None, None, None]


def test_accents_show_a_pickup_also_where_the_time_signature_comes_a_tick_late() -> None:
    events = [meter(1, 2, 4)]
    for i in range(17):
        events += sound(240 * i, 240 * i + 240, 60 + i % 4, 105 if i % 4 == 1 else 80)
    assert [bar.start for bar in only("a.mid", midi(events)).bars][:3] == [
        0,
        Fraction(1, 2),
        Fraction(5, 2),
    ]


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
    assert bars(others, [meter(0, 4, 4), *tune]) == shared  # the first track has the same and more
    assert bars(others, tune) == bars(tune, [*others, *chords]) == shared
    later = [(0, 3, "3/4"), (3, 3, "3/4"), (6, 2, "3/4"), (8, 2, "2/4"), (10, 2, "2/4")]
    assert bars([meter(0, 3, 4)], [meter(3840, 2, 4), *tune], [meter(0, 2, 4)]) == later


def test_a_pitch_struck_while_it_sounds_ends_there() -> None:
    events = [(0, mido.Message("note_on", note=60)), *sound(480, 960, 60)]
    song = only("a.mid", midi([meter(0, 2, 4), *events]))
    assert song.notes == (Note(Fraction(0), Fraction(1), 60), Note(Fraction(1), Fraction(1), 60))


def tempo(tick: int, speed: float) -> Event:
    return tick, mido.MetaMessage("set_tempo", tempo=round(6e7 / speed))


def test_tempos_hold_from_where_they_stand() -> None:
    tune = [e for i in range(12) for e in sound(480 * i, 480 * i + 480, 60 + i)]
    song = only("a.mid", midi([meter(0, 4, 4), tempo(1920, 200), tempo(3840, 100)], tune))
    assert song.tempo == 120
    assert [round(song.tempo_at(bar.start)) for bar in song.bars] == [120, 200, 100]
    assert [round(song.tempo_at(Fraction(t, 8))) for t in (31, 32)] == [120, 200]


def test_what_comes_a_few_ticks_after_the_start_holds_from_there() -> None:
    tune = [e for i in range(6) for e in sound(480 * i, 480 * i + 480, 60 + i)]
    assert only("a.mid", midi([tempo(0, 90), tempo(4, 80), *tune])).tempo == pytest.approx(80)
    assert only("a.mid", midi([tempo(6, 80), *tune])).tempo == 120


def test_tracks_that_the_head_of_a_file_does_not_count_are_read() -> None:
    data = bytearray(midi([meter(0, 3, 4)], sound(0, 1440, 60)))
    for kind, count in ((1, 1), (0, 1), (1, 0)):
        data[8:12] = kind.to_bytes(2) + count.to_bytes(2)
        song = only("a.mid", bytes(data))
        assert (pitches(song), [bar.meter for bar in song.bars]) == ([60], ["3/4"])
    data[8:12] = b"\0\2\0\1"
    assert "type 2" in rejection("a.mid", bytes(data)).detail
    data[8:12] = b"\0\1\0\3"
    assert "cut off" in rejection("a.mid", bytes(data)).detail
    data[-3:] = b"\xc0\0\x90"  # the track now ends within the time before an event
    data[8:12] = b"\0\1\0\0"
    assert "cut off" in rejection("a.mid", bytes(data)).detail


def named(name: bytes) -> str:
    data = midi([(0, mido.MetaMessage("track_name", name="?" * len(name))), *sound(0, 1920, 60)])
    return only("a.mid", data.replace(b"?" * len(name), name)).title


def test_names_are_utf_8_where_they_can_be() -> None:
    assert named("Mélodie".encode()) == "Mélodie"
    assert named("Mélodie".encode("latin-1")) == "Mélodie"
    assert named(b"Flute\0\0 ") == "Flute"


def test_channels_of_one_track_may_have_names_of_their_own() -> None:
    def prefix(channel: int) -> Event:
        return 0, mido.MetaMessage("channel_prefix", channel=channel)

    def name(text: str) -> Event:
        return 0, mido.MetaMessage("track_name", name=text)

    names = [name("Song"), prefix(0), name("Flute"), prefix(1), name("Horn")]
    notes = [
        *(event for n in range(4) for event in sound(480 * n, 480 * n + 480, 72 + n)),
        *(event for n in range(4) for event in sound(480 * n, 480 * n + 480, 48 + n, channel=1)),
        *(event for n in range(4) for event in sound(480 * n, 480 * n + 480, 36 + n, channel=2)),
    ]
    data = midi([*names, *notes], shuffled=True)
    for part, lowest in (("Flute", 72), ("Horn", 48), ("Song", 36)):
        song = only("a.mid", data, part)
        assert (song.title, pitches(song)) == ("Song", [lowest + n for n in range(4)])
    assert (
        rejection("a.mid", data, "Oboe").detail
        == "'Oboe' is not one of 1 'Flute', 2 'Horn', 3 'Song'"
    )
    assert rejection("a.mid", midi(notes), "Oboe").detail == "'Oboe' is not one of 1, 2, 3"


def test_the_title_is_the_first_name_or_that_of_a_karaoke_file() -> None:
    def name(text: str) -> Event:
        return 0, mido.MetaMessage("track_name", name=text)

    def text(text: str) -> Event:
        return 0, mido.MetaMessage("text", text=text)

    tune = sound(0, 1920, 60)
    flute, words = [name("Flute"), *tune], [name("Words"), text("@LENGL"), text("@TA Song"), *tune]
    assert only("a.mid", midi([name("A Reel")], flute)).title == "A Reel"
    assert only("a.mid", midi([meter(0, 4, 4)], flute)).title == "Flute"
    assert only("a.mid", midi(tune)).title == "a"
    artist = [*words, text("@TA Singer")]
    assert only("a.kar", midi([name("Soft Karaoke")], artist), "1").title == "A Song"


def test_midi_files_in_riff_and_karaoke_files() -> None:
    plain = midi([meter(0, 4, 4), *sound(0, 1920, 60)])
    odd = b"note" + (3).to_bytes(4, "little") + b"abc\0"
    body = b"RMID" + odd + b"data" + len(plain).to_bytes(4, "little") + plain
    riff = b"RIFF" + len(body).to_bytes(4, "little") + body
    for name, data in (("a.rmi", riff), ("a.mid", riff), ("a.kar", plain), ("a.rmi", plain)):
        assert pitches(only(name, data)) == [60]
    assert rejection("a.rmi", riff[:20]).reason == "unreadable"
    assert rejection("a.rmi", b"RIFF\4\0\0\0WAVE").reason == "unreadable"


def test_times_that_are_no_music_are_refused_with_a_sentence() -> None:
    plain = midi([meter(0, 4, 4), *sound(0, 1920, 60)])
    film = plain[:12] + bytes([256 - 25, 40]) + plain[14:]
    pieces = bytearray(midi([meter(0, 4, 4)], sound(0, 1920, 60)))
    pieces[9] = 2
    alone = plain[:9] + b"\2" + plain[10:]
    assert pitches(only("a.mid", alone)) == [60]
    for data, message in (
        (film, "SMPTE"),
        (bytes(pieces), "type 2"),
        (plain[:12] + b"\0\0", "ticks"),
    ):
        found = rejection("a.mid", data)
        assert (found.reason, message in found.detail) == ("unreadable", True)


def test_absurd_midi_files_are_refused() -> None:
    assert rejection("a.mid", midi(sound(0, 2**28 - 1, 60), quarter=1)).reason == "too large"
    assert rejection("a.mid", midi([meter(0, 4, 128), *sound(0, 9, 60)])).reason == "unreadable"
    assert rejection("a.mid", bytes(2**20 + 1)).reason == "too large"
    brief = rejection("a.mid", midi(sound(0, 1, 60)))
    assert (brief.reason, brief.detail) == (
        "no complete bar",
        "its notes are too short to be heard",
    )
    assert rejection("a.mid", b"").reason == "unreadable"
    assert rejection("a.txt", b"X:1").reason == "unreadable"


@settings(max_examples=60)
@given(st.data())
def test_damaged_midi_never_raises(data: st.DataObject) -> None:
    content = bytearray(accented(1, 105))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for song in read_melodies("a.mid", bytes(content[:cut])):
        assert isinstance(song, Melody | Rejected)
