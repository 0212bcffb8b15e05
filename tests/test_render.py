import wave
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cf_core.errors import MelodyError
from cf_core.files import replacing
from cf_core.melody import Note
from cf_core.readers import read_file
from cf_core.render import write_midi, write_wav

CONCERT_A = [Note(Fraction(0), Fraction(1), 69)]
anywhere = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_midi_events_worked_by_hand(tmp_path: Path) -> None:
    notes = [
        Note(Fraction(0), Fraction(1, 2), 60),
        Note(Fraction(1, 2), Fraction(1, 4), 60),
        Note(Fraction(2), Fraction(1, 3), 72),
        Note(Fraction(7, 3), Fraction(1, 2), 65),  # begins when a higher one has ended
    ]
    write_midi(notes, tmp_path / "a.mid", 100.0, "3/4")
    midi = mido.MidiFile(tmp_path / "a.mid")
    # 220 ticks in a quarter note.
    assert midi.ticks_per_beat == 220
    head = {m.type: m for m in midi.tracks[0]}
    assert head["set_tempo"].tempo == pytest.approx(600_000, abs=1)
    assert (head["time_signature"].numerator, head["time_signature"].denominator) == (3, 4)
    tick, events = 0, []
    for message in midi.tracks[1]:
        tick += message.time
        if message.type == "note_on":
            events.append((tick, message.note, message.velocity > 0))
    assert events == [
        (0, 60, True),
        (110, 60, False),
        (110, 60, True),
        (165, 60, False),
        (440, 72, True),
        (513, 72, False),
        (513, 65, True),
        (623, 65, False),
    ]


def test_notes_that_midi_cannot_hold_end_where_the_next_of_their_pitch_begins(
    tmp_path: Path,
) -> None:
    notes = [
        Note(Fraction(0), Fraction(2), 60),  # two voices in unison: the longer one is heard
        Note(Fraction(0), Fraction(1, 2), 60),
        Note(Fraction(4), Fraction(4), 62),  # struck again while it sounds
        Note(Fraction(5), Fraction(1), 62),
        Note(Fraction(8), Fraction(1, 2048), 64),  # shorter than a tick
        Note(Fraction(9), Fraction(1, 2048), 64),
        Note(Fraction(9) + Fraction(1, 2048), Fraction(1), 64),
        Note(Fraction(9), Fraction(2), 72),  # another pitch is none of its business
    ]
    write_midi(notes, tmp_path / "a.mid", 100.0)
    tick, sounding, found = 0, {}, []
    for message in mido.MidiFile(tmp_path / "a.mid").tracks[1]:
        tick += message.time
        if message.type != "note_on":
            continue
        if message.velocity > 0:
            assert message.note not in sounding
            sounding[message.note] = tick
        else:
            found.append((sounding.pop(message.note), tick, message.note))
    assert not sounding
    assert sorted(found) == [
        (0, 440, 60),
        (880, 1100, 62),
        (1100, 1760, 62),
        (1760, 1761, 64),
        (1980, 2200, 64),
        (1980, 2420, 72),
    ]


@st.composite
def melodies(draw: st.DrawFn) -> list[Note]:
    """Notes one after another on a grid of 16ths or of triplets, with rests between."""
    step = Fraction(1, draw(st.sampled_from([3, 4])))
    spans = draw(
        st.lists(
            st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(0, 127)),
            min_size=1,
            max_size=40,
        )
    )
    notes, at = [], Fraction(0)
    for rest, length, pitch in spans:
        notes.append(Note(at + rest * step, length * step, pitch))
        at += (rest + length) * step
    return notes


@anywhere
@given(melodies(), st.floats(10.0, 500.0), st.sampled_from(["4/4", "6/8", "2/2"]))
def test_a_written_midi_file_is_read_back(
    tmp_path: Path, notes: list[Note], tempo: float, meter: str
) -> None:
    path = tmp_path / "a.mid"
    write_midi(notes, path, tempo, meter)
    melody = read_file(path)
    assert [note.pitch for note in melody.notes] == [note.pitch for note in notes]
    for read, written in zip(melody.notes, notes, strict=True):
        assert abs(read.onset - written.onset) <= Fraction(1, 440)
        assert abs(read.onset + read.duration - written.onset - written.duration) <= Fraction(
            1, 440
        )
    assert melody.tempo == pytest.approx(tempo, rel=1e-4)
    assert {bar.meter for bar in melody.bars} == {meter}


def test_equal_notes_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_midi(CONCERT_A, tmp_path / f"{name}.mid", 90.0)
        write_wav(CONCERT_A, tmp_path / f"{name}.wav", 90.0)
    for suffix in (".mid", ".wav"):
        one, other = (tmp_path / f"{name}{suffix}" for name in ("a", "b"))
        assert one.read_bytes() == other.read_bytes()


def _samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 44_100)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)


def test_wav_of_concert_a(tmp_path: Path) -> None:
    write_wav(CONCERT_A, tmp_path / "a.wav", 60.0)
    samples = _samples(tmp_path / "a.wav")
    sounding, silence = samples[:44_100], samples[44_100:]
    assert np.abs(np.fft.rfft(sounding)).argmax() == 440
    assert np.abs(sounding).max() == round(0.5 * 32767)
    assert len(silence) == 44_100
    assert not silence.any()


def test_a_faster_tempo_shortens_the_sound(tmp_path: Path) -> None:
    write_wav(CONCERT_A, tmp_path / "a.wav", 120.0)
    samples = _samples(tmp_path / "a.wav")
    assert np.flatnonzero(samples).max() == pytest.approx(22_050, abs=50)


def test_no_notes_are_silence(tmp_path: Path) -> None:
    write_wav([], tmp_path / "a.wav", 60.0)
    write_midi([], tmp_path / "a.mid", 60.0)
    assert not _samples(tmp_path / "a.wav").any()
    assert len(mido.MidiFile(tmp_path / "a.mid").tracks) == 2


def test_a_midi_file_needs_its_suffix(tmp_path: Path) -> None:
    with pytest.raises(MelodyError, match=r"must end in \.mid"):
        write_midi(CONCERT_A, tmp_path / "a.txt", 60.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["file/a.mid", "folder.mid", ".", "x" * 300])
def test_what_cant_be_written_is_said(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.mid").mkdir()
    with pytest.raises(MelodyError, match=r"can't be written|is a folder"):
        write_wav(CONCERT_A, tmp_path / path, 60.0)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.mid"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    with suppress(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a.csv", "old")]
