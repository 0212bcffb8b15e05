import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cf_core import corpus
from cf_core.corpus import Corpus, Split, load_corpus
from cf_core.errors import CorpusError
from cf_core.ingest import ingest, read_builtin_tunes
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from tests.melodies import meter, midi, sound

DATA = os.environ.get("CF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="CF_DATA names no folder of corpora")

FORM = MelodyFormat()
HEAD = "X:1\nT:Tune\nM:4/4\nL:1/4\nK:C\n"


def tune(seed: int, bars: int = 8) -> str:
    """A tune of quarter notes, unlike that of any other seed."""
    notes = np.random.default_rng(seed).choice(list("CDEFGABcdefg"), (bars, 4))
    return HEAD + "|".join("".join(bar) for bar in notes) + "|]\n"


def write(folder: Path, tunes: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tunes.items():
        (folder / f"{name}.abc").write_text(text)
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(path).to_pylist())


def test_one_row_per_bar_and_every_rejection_told(tmp_path: Path) -> None:
    music = "G|C4-|C2z2|C3/8D29/8|[CE]4|C4|D4|E4-|E3|]\n"
    source = write(tmp_path / "tunes", {"a": HEAD + music, "b": "nothing"})
    report = ingest(source, tmp_path / "out.parquet")
    table = rows(tmp_path / "out.parquet")
    assert [row["bar"] for row in table] == list(range(9))
    assert {(row["song_id"], row["title"], row["meter"]) for row in table} == {("a", "Tune", "4/4")}
    c4 = FIRST_PITCH + 60
    assert table[1]["tokens"] == [c4] + [HOLD] * 15
    assert table[2]["tokens"] == [HOLD] * 8 + [REST] * 8
    assert table[2]["held"] == 60
    expected = {0: "short bar", 3: "off grid", 4: "chord", 8: "short bar"}
    assert {row["bar"]: row["reason"] for row in table if row["tokens"] is None} == expected
    rejected = rows(tmp_path / "out.rejected.parquet")
    assert {r["bar"]: r["reason"] for r in rejected if r["id"] == "a"} == expected
    assert [r["reason"] for r in rejected if r["id"] == "b"] == ["unreadable"]
    assert report.songs == 1
    assert report.rejected_songs == {"unreadable": 1}
    assert report.rejected_bars == {"short bar": 2, "off grid": 1, "chord": 1}
    # Whole bars 1-7; bar 2 has no onset. On the grid: 5-6 and 6-7. Bars 1-4 lack notes at first.
    two = report.windows["4/4", 2]
    assert (two.all, two.on_grid, two.unique) == (4, 2, 2)
    four = report.windows["all", 4]
    assert (four.all, four.on_grid) == (3, 0)
    assert "1 unreadable" in str(report)
    assert "4 / 2 / 2" in str(report)


def test_progress_and_the_tolerance_are_told(tmp_path: Path) -> None:
    source = write(tmp_path / "tunes", {str(n): tune(n) for n in range(3)})
    calls: list[tuple[int, int | None]] = []
    ingest(source, tmp_path / "x.parquet", progress=lambda *call: calls.append(call))
    assert calls == [(1, None), (2, None), (3, None)]
    about = pq.read_schema(tmp_path / "x.parquet").metadata[b"connective_fusion.corpus"]
    assert b'"tolerance": "1/96"' in about


def test_where_nothing_can_be_read_the_reasons_are_written(tmp_path: Path) -> None:
    tunes = dict.fromkeys("bcd", "nothing") | {"a": HEAD + "z4|]\n", "e": "X:1\nK:C\n"}
    source = write(tmp_path / "tunes", tunes)
    output, beside = tmp_path / "out" / "x.parquet", tmp_path / "out" / "x.rejected.parquet"
    with pytest.raises(CorpusError) as error:
        ingest(source, output)
    assert str(error.value) == (
        "tunes: no melody could be read (3 unreadable, 2 no notes): a: no notes;"
        " b: unreadable (no K: field, after which the music would begin);"
        " c: unreadable (no K: field, after which the music would begin); …;"
        f" {beside} lists them all"
    )
    assert [row["id"] for row in rows(beside)] == list("abcde")
    assert list(output.parent.iterdir()) == [beside]
    with pytest.raises(CorpusError, match="steps_per_beat: 0"):
        ingest(source, output, steps_per_beat=0)


def test_a_repeated_id_names_both_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(
            tmp_path / "tunes" / folder,
            {"x": tune(1), "y": tune(2)} if folder == "a" else {"x": tune(3)},
        )
    report = ingest(tmp_path / "tunes", tmp_path / "x.parquet")
    assert report.rejected_songs == {"duplicate id": 1}
    (rejected,) = rows(tmp_path / "x.rejected.parquet")
    assert rejected == {
        "id": "x",
        "bar": None,
        "reason": "duplicate id",
        "detail": "b/x.abc: a/x.abc was taken",
    }


def test_the_report_counts_ends_moved_and_files_passed_over(tmp_path: Path) -> None:
    source = write(tmp_path / "tunes", {"a": tune(0)})
    for name, cut in (("straight", 0), ("cut", 30)):
        track = [e for i in range(16) for e in sound(480 * i, 480 * i + 480 - cut, 60 + i % 7)]
        (source / f"{name}.mid").write_bytes(midi([meter(0, 4, 4), *track]))
    for name in ("notes.txt", "more.TXT", "cover.jpg"):
        (source / name).write_text("x")
    report = ingest(source, tmp_path / "x.parquet")
    assert (report.moved_ends, report.moved_songs) == (16, 1)
    assert report.passed_over == {".txt": 2, ".jpg": 1}
    assert report.rejected_bars == {}
    shown = str(report).splitlines()
    assert shown[-2:] == [
        "played notes: the ends of 16 in 1 songs were moved to the next onset or grid line",
        "files passed over by their names: 2 .txt, 1 .jpg",
    ]


def test_nothing_is_written_where_one_of_the_two_files_cant_be(tmp_path: Path) -> None:
    source = write(tmp_path / "tunes", {"a": tune(0)})
    for name in ("x.parquet", "y.rejected.parquet"):
        (tmp_path / name).mkdir()
    for name in ("x.parquet", "y.parquet"):
        with pytest.raises(CorpusError, match="is a folder"):
            ingest(source, tmp_path / name)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["tunes", "x.parquet", "y.rejected.parquet"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty different tunes, one an octave down, one that shares half its bars, and odd ones."""
    folder = tmp_path_factory.mktemp("small")
    tunes = {f"{n:02}": tune(n) for n in range(30)}
    tunes["transposed"] = re.sub(r"([A-Ga-g])(?=[A-Ga-g|])", r"\1,", tune(0))
    body = [t.removeprefix(HEAD).rstrip("]\n|").split("|") for t in (tune(1), tune(99))]
    tunes["half"] = HEAD + "|".join(body[0][:4] + body[1][:4]) + "|]\n"
    tunes["waltz"] = HEAD.replace("4/4", "3/4") + "CDE|FGA|CDE|FGA|]\n"
    tunes["high"] = HEAD + "c''''4|c4|d4|e4|]\n"
    tunes["held"] = HEAD + "G|C4-|C2D2-|D2E2|F4|]\n"
    path = folder / "small.parquet"
    ingest(write(folder / "tunes", tunes), path)
    return path


def literal_segments(path: Path, form: MelodyFormat) -> list[tuple[str, int, list[int]]]:
    """Segments by the definition, row by row."""
    table = rows(path)
    found = []
    for start in range(len(table) - form.bars_per_segment + 1):
        window = table[start : start + form.bars_per_segment]
        same = len({(row["song_id"], row["meter"]) for row in window}) == 1
        if not same or window[0]["meter"] not in form.meters:
            continue
        if any(row["tokens"] is None for row in window):
            continue
        tokens = [t for row in window for t in row["tokens"]]
        halves = tokens[: form.steps // 2], tokens[-(form.steps // 2) :]
        onsets = [sum(t >= FIRST_PITCH for t in half) for half in halves]
        if min(onsets) * 2 < form.bars_per_segment:
            continue
        if tokens[0] == HOLD:
            tokens[0] = FIRST_PITCH + window[0]["held"]
        pitched = [t - FIRST_PITCH for t in tokens if t >= FIRST_PITCH]
        if all(form.lowest <= p <= form.highest for p in pitched):
            model = [t - form.lowest if t >= FIRST_PITCH else t for t in tokens]
            found.append((window[0]["song_id"], window[0]["bar"], model))
    return found


@pytest.mark.parametrize(
    "form", [FORM, replace(FORM, bars_per_segment=1), replace(FORM, bars_per_segment=3, highest=79)]
)
def test_segments_are_those_of_the_definition(small: Path, form: MelodyFormat) -> None:
    loaded = load_corpus(small, form, 0)
    got = [
        (loaded.song_ids[song], int(bar), tokens.tolist())
        for song, bar, tokens in zip(loaded.song, loaded.bar, loaded.tokens, strict=True)
    ]
    assert got == literal_segments(small, form)
    assert loaded.tokens.max() < form.vocabulary


def test_pairs_are_adjacent_and_do_not_overlap(small: Path) -> None:
    loaded = load_corpus(small, FORM, 0)
    place = {(int(s), int(b)): row for row, (s, b) in enumerate(zip(loaded.song, loaded.bar))}  # noqa: B905
    expected = [
        (row, place[song, bar + 2])
        for (song, bar), row in place.items()
        if (song, bar + 2) in place
    ]
    assert sorted(map(tuple, loaded.pairs.tolist())) == sorted(expected)


def test_splits_take_whole_songs_and_keep_near_duplicates_together(small: Path) -> None:
    together = 0
    for seed in range(12):
        loaded = load_corpus(small, FORM, seed)
        side = dict(zip(loaded.song_ids, loaded.split.tolist(), strict=True))
        assert side["transposed"] == side["00"]
        assert side["half"] == side["01"]
        together += side["02"] == side["03"]
        sizes = [
            (loaded.split == part).sum() for part in (Split.TRAIN, Split.VALIDATION, Split.TEST)
        ]
        assert sizes == [len(side) - 6, 3, 3]
        parts = [loaded.segments(part) for part in (Split.TRAIN, Split.VALIDATION, Split.TEST)]
        assert sorted(np.concatenate(parts)) == list(range(len(loaded.tokens)))
        pairs = [loaded.pairs_of(part) for part in (Split.TRAIN, Split.VALIDATION, Split.TEST)]
        assert sum(map(len, pairs)) == len(loaded.pairs)
        for part, rows_of_pairs in zip(parts, pairs, strict=True):
            assert set(rows_of_pairs.ravel().tolist()) <= set(part.tolist())
    assert together < 12


def test_the_seed_alone_decides_the_split(small: Path) -> None:
    first, again, other = (load_corpus(small, FORM, seed) for seed in (1, 1, 2))
    assert first.split.tolist() == again.split.tolist()
    assert first.split.tolist() != other.split.tolist()


def slow_groups(songs: list[set[bytes]]) -> list[set[int]]:
    groups = [{n} for n in range(len(songs))]
    for a in range(len(songs)):
        for b in range(a):
            if 3 * len(songs[a] & songs[b]) >= min(len(songs[a]), len(songs[b])) > 0:
                left = next(g for g in groups if a in g)
                right = next(g for g in groups if b in g)
                if left is not right:
                    groups.remove(right)
                    left |= right
    return sorted(groups, key=min)


@given(st.lists(st.sets(st.integers(0, 12), min_size=1, max_size=6), min_size=2, max_size=9))
def test_near_duplicates_are_those_of_the_definition(songs: list[set[int]]) -> None:
    """Phrase `p` is a first note and one `p + 1` semitones higher, in any transposition."""
    tokens, song = [], []
    for number, phrases in enumerate(songs):
        for phrase in phrases:
            row = [REST] * 32
            row[0] = FIRST_PITCH + number
            row[16] = FIRST_PITCH + number + phrase + 1
            tokens.append(row)
            song.append(number)
    windows = corpus.Windows(
        np.array(tokens, dtype=np.uint8),
        np.array(song),
        np.zeros(len(song), dtype=np.int64),
        np.zeros(len(song), dtype=bool),
    )
    groups = corpus.group_near_duplicates(windows, np.arange(len(songs)))
    found: dict[int, set[int]] = {}
    for number, group in enumerate(groups.tolist()):
        found.setdefault(group, set()).add(number)
    as_bytes = [{bytes([p]) for p in phrases} for phrases in songs]
    assert sorted(found.values(), key=min) == slow_groups(as_bytes)


def test_the_hash_is_of_the_bars_alone(small: Path, tmp_path: Path) -> None:
    table = pq.read_table(small)
    before = load_corpus(small, FORM, 0).content_hash
    other = tmp_path / "elsewhere.parquet"
    pq.write_table(table, other, compression="snappy", row_group_size=7)
    assert load_corpus(other, FORM, 0).content_hash == before
    names = [name for name in table.column_names if name != "title"]
    for name in names:
        column = table[name].to_pylist()
        index = next(i for i, value in enumerate(column) if value is not None)
        changed = {"tokens": [REST] * 16, "bar": 99, "held": 99}.get(name, "other")
        column[index] = changed
        position = table.column_names.index(name)
        edited = table.set_column(position, name, pa.array(column, table[name].type))
        assert corpus.hash_bars(edited) != before, name
        pq.write_table(edited, other)
        with pytest.raises(CorpusError, match="not those that were written"):
            load_corpus(other, FORM, 0)


def test_files_that_are_no_corpus_for_the_format(small: Path, tmp_path: Path) -> None:
    foreign, text = tmp_path / "foreign.parquet", tmp_path / "text.parquet"
    pq.write_table(pa.table({"a": [1]}), foreign)
    text.write_text("hello")
    key, about = b"connective_fusion.corpus", pq.read_schema(small).metadata
    columns = pq.read_table(small)
    other, partial = tmp_path / "other.parquet", tmp_path / "partial.parquet"
    bars = pa.array(columns["bar"].to_pylist(), pa.int64())
    pq.write_table(columns.set_column(2, "bar", bars).replace_schema_metadata(about), other)
    pq.write_table(columns.replace_schema_metadata({key: b"[]"}), partial)
    tiny = tmp_path / "tiny.parquet"
    ingest(write(tmp_path / "tunes", {str(n): tune(n) for n in range(4)}), tiny)
    cases: Iterable[tuple[Path, MelodyFormat, str]] = [
        (tmp_path / "none.parquet", FORM, "no such file"),
        (foreign, FORM, "not a corpus file"),
        (text, FORM, "not a corpus file"),
        (partial, FORM, "not a corpus file"),
        (other, FORM, "not those that were written"),
        (
            small,
            replace(FORM, steps_per_beat=12),
            "has 4 grid steps per quarter note, but .* is 12",
        ),
        (tiny, FORM, "too small to split: 4 songs with 28 segments"),
        (small, replace(FORM, meters=("5/4",)), "too small to split: 0 songs"),
    ]
    for path, form, message in cases:
        with pytest.raises(CorpusError, match=message):
            load_corpus(path, form, 0)


def test_built_in_tunes_are_those_of_two_books() -> None:
    tunes = dict(read_builtin_tunes())
    assert len(tunes) == 3189
    assert b"T:The White Cockade" in tunes["airdsAirs-book1-1.abc"].replace(b"T: ", b"T:")
    jigs = sum(b"\nM:6/8" in text.split(b"\nK:")[0].replace(b" ", b"") for text in tunes.values())
    assert jigs > 1000


@pytest.mark.slow
@needs_data
def test_a_real_archive(tmp_path: Path) -> None:
    source = Path(str(DATA), "nottingham/nottingham-dataset.zip")
    path = tmp_path / "x.parquet"
    report = ingest(source, path, include="MIDI/hpps*.mid")
    assert report.songs == 65
    loaded: Corpus = load_corpus(path, FORM, 0)
    assert len(loaded.tokens) == report.windows["4/4", 2].on_grid + report.windows["2/2", 2].on_grid
    side = dict(zip(loaded.song_ids, loaded.split.tolist(), strict=True))
    assert side["hpps24"] == side["hpps25"]
