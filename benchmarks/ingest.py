"""`python -m benchmarks.ingest`: how fast melody files become a corpus.

Prints one table and writes `benchmarks/out/ingest.json`, as `benchmarks.core` does. Whole ingests
are timed, to the corpus file, the start of the reading processes included.
"""

import io
import os
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import pretty_midi

from benchmarks.measuring import Measure, Rounds, introduce, publish, ratio, tell
from cf_core.ingest import ingest, read_builtin_tunes
from cf_core.isolation import processes
from cf_core.melody import Melody
from cf_core.readers import Song, read_gridded, read_melodies, split_songs
from cf_core.render import write_midi

OUTPUT = Path(__file__).parent / "out" / "ingest.json"
MIDI_FILES, WRITTEN_AS, TUNES = 1024, 8, 320
"""Files, tunes that they are made of, and how often each is written.

Written so often, the tunes are eighty batches: as many for each of two processes.
"""
PEER_TUNES = 64
"""So many tunes are shown to music21, which takes its time."""


def main(repeats: int = 3, scale: int = 1, output: Path = OUTPUT) -> None:
    """Measure everything, print the table and write it to `output`."""
    introduce(repeats)
    publish(measures(Rounds(repeats, 0.0, scale)), output)


def measures(rounds: Rounds) -> list[Measure]:
    """Reading against parsers of others, and two reading processes against one."""
    with TemporaryDirectory() as folder:
        return [
            *_against_parsing(rounds, Path(folder)),
            *_against_music21(rounds),
            *_speedup(rounds, Path(folder)),
        ]


def _against_parsing(rounds: Rounds, folder: Path) -> Iterator[Measure]:
    """An ingest by one process against pretty_midi's parser alone, on the same MIDI files."""
    (folder / "midi").mkdir()
    for name, data in islice(_midi_files(folder), max(16, MIDI_FILES // rounds.scale)):
        (folder / "midi" / name).write_bytes(data)
    contents = [path.read_bytes() for path in sorted((folder / "midi").iterdir())]

    def parse() -> None:
        with warnings.catch_warnings():
            # It warns of tempo changes outside the first track.
            warnings.simplefilter("ignore")
            for content in contents:
                pretty_midi.PrettyMIDI(io.BytesIO(content))

    output = folder / "midi.parquet"
    seconds = rounds.take_turns(
        partial(ingest, folder / "midi", output, mapper=processes(1)), parse
    )
    tell(f"{len(contents)} MIDI files", seconds, ("ingest", "pretty_midi"))
    yield Measure("ingest_vs_parse", ratio(seconds, 0, 1), "×", 0.85, "lower")


def _against_music21(rounds: Rounds) -> Iterator[Measure]:
    """Tunes in ABC, read to bars on a grid, against music21's parser alone."""
    tunes = list(islice(read_builtin_tunes(), max(4, PEER_TUNES // rounds.scale)))
    read = [
        song for name, text in tunes for song in split_songs(name, text) if isinstance(song, Song)
    ]
    parser = import_module("music21.converter")

    def parse() -> None:
        for _, text in tunes:
            parser.parse(text.decode(), format="abc", forceSource=True)

    seconds = rounds.take_turns(lambda: [read_gridded(song, None, 4) for song in read], parse)
    tell(f"{len(tunes)} tunes in ABC", seconds, ("ours", "music21"))
    yield Measure("abc_vs_music21", ratio(seconds, 0, 1), "×", 0.1, "lower")


def _speedup(rounds: Rounds, folder: Path) -> Iterator[Measure]:
    """An ingest of tunes in ABC by one process and by two."""
    (folder / "abc").mkdir()
    for name, text in islice(read_builtin_tunes(), max(16, TUNES // rounds.scale)):
        for copy in range(WRITTEN_AS):
            (folder / "abc" / f"{copy}-{name}").write_bytes(text)
    output = folder / "abc.parquet"
    seconds = rounds.take_turns(
        *(partial(ingest, folder / "abc", output, mapper=processes(n)) for n in (1, 2))
    )
    tell(f"{len(list((folder / 'abc').iterdir()))} tunes in ABC", seconds, ("one process", "two"))
    yield Measure("ingest_speedup_2", ratio(seconds, 0, 1), "×", 1.8, "higher")


def _midi_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The Nottingham collection where CF_DATA has it, else built-in tunes, each several times."""
    archive = Path(os.environ.get("CF_DATA") or folder, "nottingham", "nottingham-dataset.zip")
    if archive.exists():
        with zipfile.ZipFile(archive) as members:
            for name in members.namelist():
                if "MIDI/" in name and name.endswith(".mid"):
                    yield Path(name).name, members.read(name)
        return
    file = folder / "tune.mid"
    for name, text in read_builtin_tunes():
        for melody in read_melodies(name, text):
            if isinstance(melody, Melody):
                write_midi(melody.notes, file, melody.tempo)
                for copy in range(WRITTEN_AS):
                    yield f"{melody.id}-{copy}.mid", file.read_bytes()


if __name__ == "__main__":
    main()
