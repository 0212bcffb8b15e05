"""`python -m tests.fuzz`: hostile MIDI, MusicXML and ABC files, read as an ingest reads them.

COUNT says how many, 5,000 by default. Prints what came of them and writes it to
`benchmarks/out/fuzz.json`; exits with status 1 where a file hung, crashed its reader or took more
than is allowed.
"""

import bz2
import io
import json
import lzma
import os
import random
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import mido

from cf_core.files import replacing
from cf_core.isolation import MEMORY, SECONDS, CallError, call_isolated, processes
from cf_core.readers import Rejected, read_gridded, split_songs

OUTPUT = Path(__file__).parent.parent / "benchmarks" / "out" / "fuzz.json"
PROCESSES = 2


class Outcome(NamedTuple):
    """What came of one file."""

    name: str
    results: list[str]
    """"melody", or the reason for a rejection, of each of its songs."""
    seconds: float
    """Longest that one of its songs took."""
    memory: int
    """Bytes that its reader has taken up at most so far."""


def main(count: int, output: Path = OUTPUT) -> int:
    """Read so many files, write down what came of them, and return the exit status."""
    outcomes = []
    for outcome in processes(PROCESSES)(attempt, files(count)):
        outcomes.append(outcome)
        if FAILURES.intersection(outcome.results) or outcome.seconds > SECONDS / 2:
            print(outcome, flush=True)
    report = summary(outcomes)
    text = json.dumps(report, indent=1)
    print(text)
    with replacing(output) as temporary:
        temporary.write_text(text + "\n")
    return int(bool(report["crashes"]) or report["peak_memory_mb"] > MEMORY / 2**20)


FAILURES = {"too slow", "too much memory", "reader died"}


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """The figures of so many files; `crashes` counts files that were stopped by a limit as well."""
    results = Counter(chain.from_iterable(outcome.results for outcome in outcomes))
    return {
        "files": len(outcomes),
        "melodies": results.pop("melody", 0),
        "rejected": dict(results.most_common()),
        "slowest_seconds": round(max(outcome.seconds for outcome in outcomes), 2),
        "peak_memory_mb": round(max(outcome.memory for outcome in outcomes) / 2**20),
        "crashes": sum(bool(FAILURES.intersection(outcome.results)) for outcome in outcomes),
    }


def attempt(file: tuple[str, bytes]) -> Outcome:
    """Read one file in isolation, its songs on a grid."""
    name, data = file
    results: list[str] = []
    slowest = 0.0
    start = perf_counter()
    for song in split_songs(name, data):
        if isinstance(song, Rejected):
            results.append(song.reason)
        else:
            try:
                result = call_isolated(read_gridded, song, "1", 4)
                results.append(result.reason if isinstance(result, Rejected) else "melody")
            except CallError as error:
                results.append(error.reason)
        slowest, start = max(slowest, perf_counter() - start), perf_counter()
    # Not getrusage: what that gives is never less than the process had that started this one.
    status = call_isolated(Path.read_text, Path("/proc/self/status"))
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return Outcome(name, results, slowest, int(peak.split()[1]) * 1024)


# ---- hostile files -----------------------------------------------------------------------------


def files(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Names and contents: of each kind and mutation in turn, the same for the same seed."""
    chance = random.Random(seed)  # noqa: S311  (mutations are no secrets)
    originals: Mapping[str, list[bytes]] = {
        ".mid": [_midi(chance) for _ in range(10)],
        ".xml": [_xml(chance) for _ in range(10)],
        ".abc": _abc(),
    }
    originals = {**originals, ".mxl": [_mxl(data) for data in originals[".xml"]]}
    specific: Mapping[str, list[Callable[[bytes, random.Random], bytes]]] = {
        ".mid": [_midi_lengths, _midi_events],
        ".xml": [_numbers, _repeated, _xml_repeats, _entities, _nested_tags, _encoding],
        ".mxl": [_bomb, _foreign_zip, _broken_zip],
        ".abc": [_numbers, _repeated, _abc_repeats, _abc_signs, _abc_book],
    }
    plans = [
        (suffix, mutate)
        for suffix, mutations in specific.items()
        for mutate in (_truncated, _flipped, _spliced, *mutations)
    ]
    for number in range(count):
        suffix, mutate = plans[number % len(plans)]
        data = mutate(chance.choice(originals[suffix]), chance)
        # One in three is mutated twice.
        if chance.random() < 1 / 3:
            data = chance.choice((_truncated, _flipped, _spliced))(data, chance)
        yield f"{number:05}-{mutate.__name__.strip('_')}{suffix}", data


def _midi(chance: random.Random) -> bytes:
    file = mido.MidiFile(ticks_per_beat=chance.choice([96, 480, 960]))
    for _ in range(chance.randint(1, 3)):
        track = file.add_track(chance.choice(["", "melody", "é"]))
        track.append(mido.MetaMessage("time_signature", numerator=chance.choice([2, 3, 4])))
        track.append(mido.MetaMessage("set_tempo", tempo=400_000))
        for _ in range(chance.randint(5, 200)):
            pitch = chance.randint(50, 80)
            length = file.ticks_per_beat // chance.choice([1, 2, 4])
            track.append(mido.Message("note_on", note=pitch, velocity=chance.choice([80, 105])))
            track.append(mido.Message("note_off", note=pitch, time=length))
    stream = io.BytesIO()
    file.save(file=stream)
    return stream.getvalue()


def _xml(chance: random.Random) -> bytes:
    def note() -> str:
        pitch = f"<step>{chance.choice('ABCDEFG')}</step><octave>{chance.randint(3, 6)}</octave>"
        return f"<note><pitch>{pitch}</pitch><duration>2</duration><type>quarter</type></note>"

    attributes = (
        "<attributes><divisions>2</divisions><time><beats>4</beats><beat-type>4</beat-type></time>"
        '</attributes><sound tempo="90"/>'
    )
    repeat = '<barline location="right"><repeat direction="backward"/></barline>'
    measures = "".join(
        f'<measure number="{n}">{attributes if n == 1 else ""}{"".join(note() for _ in range(4))}'
        f"{repeat if n == 4 else ''}</measure>"
        for n in range(1, chance.randint(6, 20))
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><score-partwise version="3.1"><part-list>'
        '<score-part id="P1"><part-name>Voice</part-name></score-part></part-list>'
        f'<part id="P1">{measures}</part></score-partwise>'
    ).encode()


def _mxl(score: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    root = b'<container><rootfiles><rootfile full-path="score.xml"/></rootfiles></container>'
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in (("META-INF/container.xml", root), ("score.xml", score)):
            # Without a name alone: that would also write down what time it is.
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return stream.getvalue()


def _abc() -> list[bytes]:
    """Tunes of the public-domain books in music21."""
    spec = find_spec("music21")
    assert spec is not None
    assert spec.origin is not None
    book = Path(spec.origin).parent / "corpus" / "airdsAirs" / "book1.abc"
    return [b"X:" + tune for tune in book.read_bytes().split(b"X:")[1:31]]


def _truncated(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def _flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 4, 32, 256])):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _spliced(data: bytes, chance: random.Random) -> bytes:
    a, b, c = sorted(chance.randrange(len(data) + 1) for _ in range(3))
    return data[:b] + data[a:c] * chance.choice([0, 1, 2, 20]) + data[b:]


ABSURD = [0, 1, -1, 7, 255, 999, 12345, 2**16 - 1, 2**31, 2**64, 10**18, 10**400]


def _numbers(data: bytes, chance: random.Random) -> bytes:
    """Absurd numbers in place of some."""
    places = [i for i, byte in enumerate(data) if chr(byte).isdigit()] or [0]
    for place in sorted(chance.sample(places, min(len(places), 3)), reverse=True):
        number = str(chance.choice(ABSURD)).encode()
        data = data[:place] + number + data[place + 1 :]
    return data


def _repeated(data: bytes, chance: random.Random) -> bytes:
    """A short piece, again and again."""
    start = chance.randrange(len(data))
    piece = data[start : start + chance.choice([1, 2, 8, 64])]
    return data[:start] + piece * chance.choice([100, 1000, 20_000]) + data[start:]


def _midi_lengths(data: bytes, chance: random.Random) -> bytes:
    """An absurd length of a chunk, an event or a time."""
    place = chance.choice([4, 8, 10, 12, 18, chance.randrange(22, len(data))])
    absurd = chance.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\x7f\xff"])
    return data[:place] + absurd + data[place + len(absurd) :]


def _midi_events(data: bytes, chance: random.Random) -> bytes:
    """A track with very many events of a kind, up to the largest file that is read."""
    event = chance.choice(
        [
            b"\x01\x90\x3c\x50\x01\x3c\x00",
            b"\x00\x90" + bytes([chance.randrange(128)]) + b"\x50",
            b"\xff\xff\xff\x7f\x90\x3c\x50\x60\x3c\x00",
            b"\x01\xff\x58\x04" + bytes([chance.randrange(256), chance.randrange(8)]) + b"\x18\x08",
            b"\x00\xff\x03\x7f" + b"n" * 127,
            b"\x00\xf0\x01\xf7",
            b"\x87\x68\x90\x3c\x50\x87\x68\x3c\x00",
            bytes(chance.randrange(256) for _ in range(12)),
        ]
    )
    content = event * (chance.choice([100, 20_000, 2**20 - 100]) // len(event))
    return data[:14] + b"MTrk" + len(content).to_bytes(4) + content + data[14:]


def _xml_repeats(data: bytes, chance: random.Random) -> bytes:
    """Repeats within repeats, endings and jumps, in every measure."""
    signs = [
        b'<barline location="left"><repeat direction="forward"/></barline>',
        b'<barline location="right"><repeat direction="backward" times="1000000000"/></barline>',
        b'<barline location="left"><ending number="1" type="start"/></barline>',
        b'<barline location="right"><ending number="1,2,3" type="stop"/></barline>',
        b'<direction><sound dacapo="yes"/></direction>',
        b'<direction><direction-type><segno/></direction-type><sound dalsegno="x"/></direction>',
        b"<direction><direction-type><words>D.C. al Fine</words></direction-type></direction>",
    ]
    head, *measures = data.split(b"</measure>")
    measures *= chance.choice([1, 5])
    measures = [chance.choice(signs) + m for m in [head, *measures[:-1]]] + measures[-1:]
    return b"</measure>".join(m[m.find(b"<?xml") if b"<?xml" in m else 0 :] for m in measures)


def _entities(data: bytes, chance: random.Random) -> bytes:
    """Entities that expand a billionfold, call themselves, or name a file or a host."""
    levels = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(10))
    kinds = [
        f'<!DOCTYPE x [<!ENTITY e0 "lol">{levels}]>',
        f'<!DOCTYPE x [<!ENTITY e10 "{"a" * 10**6}">]>',
        '<!DOCTYPE x [<!ENTITY e10 "&e10;">]>',
        '<!DOCTYPE x [<!ENTITY e10 SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE x [<!ENTITY % p SYSTEM "http://127.0.0.1:1/x.dtd"> %p;]>',
        '<!DOCTYPE x SYSTEM "http://127.0.0.1:1/x.dtd">',
    ]
    doctype = chance.choice(kinds)
    encoding = chance.choice(["utf-8", "utf-16", "utf-8"])
    text = data.decode().replace("?>", f"?>{doctype}").replace("Voice", "&e10;" * 20)
    return text.replace("UTF-8", encoding).encode(encoding)


def _nested_tags(data: bytes, chance: random.Random) -> bytes:
    """A very deep, or very wide, tree."""
    count = chance.choice([1000, 100_000, 2_000_000])
    tag = chance.choice([b"note", b"measure", b"a"])
    nested = b"<%b>" % tag * count
    if chance.random() < 0.5:
        nested += b"</%b>" % tag * count
    wide = b"<%b/>" % tag * count
    return data.replace(b"</measure>", chance.choice([nested, wide]) + b"</measure>", 1)


def _encoding(data: bytes, chance: random.Random) -> bytes:
    """Said to be in another encoding than it is."""
    names = ["cp037", "utf-7", "utf-16", "idna", "rot13", "unicode_escape", "zip", "none"]
    return data.replace(b"UTF-8", chance.choice(names).encode(), 1)


def _bomb(data: bytes, chance: random.Random) -> bytes:
    """An archive whose score is far larger than the archive."""
    del data
    filler = chance.choice([b" ", b"<note/>", b"<a>"])
    method = chance.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    # The other methods take long to write.
    size = chance.choice([2**20, 2**25, 2**27] if method == zipfile.ZIP_DEFLATED else [2**22])
    return _mxl(b'<score-partwise version="3.1">' + filler * (size // len(filler)), method)


def _foreign_zip(data: bytes, chance: random.Random) -> bytes:
    """Compressed, but not as a zip archive; or an archive in an archive; or of very many files."""
    kind = chance.randrange(4)
    if kind == 0:
        return b"PK" + bz2.compress(data)
    if kind == 1:
        return lzma.compress(data)
    if kind == 2:
        return _mxl(_mxl(data))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number in range(20_000):
            archive.writestr(zipfile.ZipInfo(str(number)), "")
    return stream.getvalue()


def _broken_zip(data: bytes, chance: random.Random) -> bytes:
    """An archive whose directory lies: sizes, offsets, flags, names."""
    changed = bytearray(data)
    central = data.find(b"PK\1\2")
    for _ in range(chance.choice([1, 3])):
        changed[chance.randrange(central, len(data))] = chance.choice([0, 1, 255])
    return bytes(changed)


def _abc_repeats(data: bytes, chance: random.Random) -> bytes:
    """Repeats within repeats, endings and jumps, in every bar."""
    signs = [b"|:", b":|", b"::", b"|1", b":|2", b"|[1,2,3-9", b"!D.C.!|", b"!segno!|", b"|:|:"]
    text = data.replace(b"|", chance.choice(signs))
    return text + b"".join(chance.choice(signs) + b"C" for _ in range(chance.choice([10, 500])))


def _abc_signs(data: bytes, chance: random.Random) -> bytes:
    """Signs of the notation, in any order."""
    signs = "A B c' D, z (3 (9 (99 { } [ ] < > >>> - ~ ! + \" | :| ^^ __ = 9999 /// 1/999 M:5/0"
    signs += " [K:Q] [M:4/4] [L:1/1024] V:2 w: % \\ & $ \x00 é"
    body = " ".join(chance.choices(signs.split(" "), k=chance.choice([10, 200, 2000])))
    return data + body.encode() + chance.choice([b"", b"\n"]) + data[:40]


def _abc_book(data: bytes, chance: random.Random) -> bytes:
    """A book of very many tunes, or with a header longer than any tune."""
    if chance.random() < 0.5:
        return b"X:1\n" * chance.choice([50, 20_000])
    return b"T:" + b"x" * chance.choice([100, 10**5]) + b"\n" + data * 2


if __name__ == "__main__":
    sys.exit(main(int(os.environ.get("COUNT", "5000"))))
