# ruff: noqa: T201
"""Fuse two melodies with the ready-made model, once for each of three λ.

A small λ changes the tunes a lot so that they join well. A large one leaves them nearly as they
are. Only `cf_core` is needed. What is fused is written to the current folder.

    python examples/fuse_two_melodies.py                     # two short tunes that it writes itself
    python examples/fuse_two_melodies.py LEFT.mid RIGHT.abc  # your own: MIDI, MusicXML or ABC
"""

import sys
from fractions import Fraction
from pathlib import Path

from cf_core.bundle import load_bundle
from cf_core.fuse import fuse_files
from cf_core.melody import Note
from cf_core.render import write_midi

LEFT = (62, 66, 69, 66, 67, 71, 69, 66, 64, 67, 71, 67, 66, 64, 62, 62)
RIGHT = (79, 77, 75, 74, 72, 74, 75, 72, 70, 72, 74, 70, 67, 70, 72, 72)
"""Two bars of eighths each, as MIDI pitches: one in D major, the other in C minor."""


def write_tune(pitches: tuple[int, ...], path: Path) -> Path:
    """Write eighths as a MIDI file. Onsets and durations are in quarter notes."""
    eighth = Fraction(1, 2)
    notes = [Note(place * eighth, eighth, pitch) for place, pitch in enumerate(pitches)]
    write_midi(notes, path, tempo=120.0)
    return path


def main() -> None:
    """Fuse the files that are named, or two of its own."""
    if len(sys.argv) not in (1, 3):
        sys.exit(__doc__)
    if sys.argv[1:]:
        left, right = map(Path, sys.argv[1:])
    else:
        left = write_tune(LEFT, Path("example-left.mid"))
        right = write_tune(RIGHT, Path("example-right.mid"))
    bundle = load_bundle()
    for lambda_ in (3.0, 0.3, 0.03):
        fused = fuse_files(left, right, bundle, lambda_=lambda_)
        path = Path(f"fused-lambda{lambda_}.mid")
        write_midi(fused.output_notes, path, fused.tempo, fused.meter)
        print(f"λ {lambda_}: {fused.edits[0]} and {fused.edits[1]} grid steps edited, wrote {path}")


if __name__ == "__main__":
    main()
