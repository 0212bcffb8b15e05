"""Writes notes as MIDI files and as sound. Equal notes give equal bytes."""

import wave
from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from itertools import accumulate
from typing import Any

import numpy as np

from cf_core.errors import MelodyError
from cf_core.files import AnyPath, replacing
from cf_core.melody import Note

SAMPLE_RATE = 44_100
_PEAK = 0.5
"""Loudest sample of a WAV file, as a share of full scale."""
_VELOCITY = 90
_TICKS = 220
"""Ticks in a quarter note of a MIDI file."""


def check_midi_name(path: AnyPath) -> None:
    """Raise `MelodyError` if `path` does not end in .mid or .midi."""
    if path.suffix.lower() not in (".mid", ".midi"):
        raise MelodyError(f"{path}: the name of a MIDI file must end in .mid")


def write_midi(
    notes: Sequence[Note],
    path: AnyPath,
    tempo: float,
    meter: str | Sequence[tuple[Fraction, str]] = "4/4",
    markers: Sequence[tuple[Fraction, str]] = (),
) -> None:
    """Write a MIDI file of one track at `tempo` quarter notes per minute.

    `meter` is one for the whole file, or says at which quarter note which meter begins; `markers`
    are texts at quarter notes, which sequencers show above the bars.

    A note lasts a tick (1/220 quarter note) or more, and has ended before others begin on the same
    tick. MIDI knows one note of a pitch at a time, so a note ends where the next one of its pitch
    begins, which then sounds until both have ended.

    Raises `MelodyError` if `path` does not end in .mid or .midi or can't be written.

    >>> from fractions import Fraction
    >>> from pathlib import Path
    >>> from cf_core.melody import Note
    >>> from cf_core.render import write_midi
    >>> scale = [Note(Fraction(beat), Fraction(1), 60 + 2 * beat) for beat in range(3)]
    >>> write_midi(scale, Path("scale.mid"), tempo=96.0, meter="3/4")
    """
    check_midi_name(path)
    content = make_midi(notes, tempo, meter, markers)
    with replacing(path, MelodyError) as temporary:
        temporary.write_bytes(content)


def make_midi(
    notes: Sequence[Note],
    tempo: float,
    meter: str | Sequence[tuple[Fraction, str]] = "4/4",
    markers: Sequence[tuple[Fraction, str]] = (),
) -> bytes:
    """Make the content of the file that `write_midi` writes."""
    stream = BytesIO()
    _midi(notes, tempo, meter).write(stream)
    return _arrange(stream.getvalue(), markers)


def _arrange(content: bytes, markers: Sequence[tuple[Fraction, str]]) -> bytes:
    """Put ends before onsets of the same tick, and add markers: pretty_midi does neither.

    It sorts by pitch. A synthesiser that plays one note at a time would slur what falls.
    """
    import mido  # noqa: PLC0415  (slow, and needed only where a file is written)

    midi = mido.MidiFile(file=BytesIO(content), charset="utf-8")
    added = [
        (round(start * midi.ticks_per_beat), mido.MetaMessage("marker", text=text))
        for start, text in sorted(markers)
    ]
    for number, track in enumerate(midi.tracks):
        ticks = accumulate(message.time for message in track)
        events = [*zip(ticks, track, strict=True), *(added if number == 0 else [])]
        events.sort(key=lambda event: (event[0], _is_onset(event[1])))
        starts = [0, *(at for at, _ in events)]
        track[:] = [
            message.copy(time=at - before)
            for before, (at, message) in zip(starts, events, strict=False)
        ]
    stream = BytesIO()
    midi.save(file=stream)
    return stream.getvalue()


def _is_onset(message: Any) -> bool:
    return bool(message.type == "note_on" and message.velocity > 0)


def write_wav(notes: Sequence[Note], path: AnyPath, tempo: float) -> None:
    """Write notes as sine tones: 16 bits, mono, 44.1 kHz.

    Raises `MelodyError` if `path` can't be written.
    """
    sound = _midi(notes, tempo, "4/4").synthesize(SAMPLE_RATE, normalize=False)
    peak = np.abs(sound).max()
    samples = np.round(sound * (_PEAK * 32767 / peak if peak else 0.0)).astype("<i2")
    with replacing(path, MelodyError) as temporary, wave.open(str(temporary), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, len(samples), "NONE", ""))
        file.writeframes(samples.tobytes())


def _midi(notes: Sequence[Note], tempo: float, meter: str | Sequence[tuple[Fraction, str]]) -> Any:
    import pretty_midi  # noqa: PLC0415  (slow, and needed only where a file is written)

    midi = pretty_midi.PrettyMIDI(resolution=_TICKS, initial_tempo=tempo)
    seconds = 60.0 / tempo
    for start, signature in [(Fraction(0), meter)] if isinstance(meter, str) else meter:
        beats, unit = (int(number) for number in signature.split("/"))
        change = pretty_midi.TimeSignature(beats, unit, float(start) * seconds)
        midi.time_signature_changes.append(change)
    track = pretty_midi.Instrument(program=0, name="melody")
    for onset, end, pitch in _to_ticks(notes):
        times = (tick * seconds / _TICKS for tick in (onset, end))
        track.notes.append(pretty_midi.Note(_VELOCITY, pitch, *times))
    midi.instruments.append(track)
    return midi


def _to_ticks(notes: Sequence[Note]) -> list[tuple[int, int, int]]:
    """Onset, end and pitch of notes, such that no two of one pitch sound at one time."""
    ends: dict[tuple[int, int], int] = {}  # by pitch and onset
    last: dict[int, int] = {}  # of each pitch, its last onset so far
    for note in sorted(notes, key=lambda note: note.onset):
        onset = round(note.onset * _TICKS)
        end = max(round((note.onset + note.duration) * _TICKS), onset + 1)
        before = note.pitch, last.get(note.pitch, onset)
        if ends.get(before, onset) > onset:
            end = max(end, ends[before])
            ends[before] = onset
        ends[note.pitch, onset] = end
        last[note.pitch] = onset
    return [(onset, end, pitch) for (pitch, onset), end in ends.items()]
