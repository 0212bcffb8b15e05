"""Holds the README's example outputs against what a finished quickstart really prints.

`python -m tests.readme` (after `make quickstart`, from the root of a checkout) runs each command of
the README's console blocks and compares its output line by line. Blocks that read melodies of one's
own need the collections below `CF_DATA`, and are left out without it. A test does the same on a
small study, where numbers differ and only the wording is compared.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

import study
from cf_core.ingest import read_builtin_tunes
from cf_core.readers import read_file
from cf_core.render import write_midi
from study.store import Store

README = Path(__file__).parent.parent / "README.md"
PROGRAM = Path(sys.executable).with_name("cf-study")


@dataclass(frozen=True)
class Example:
    """A command of the README and the lines that it is said to print."""

    command: str
    lines: tuple[str, ...]


def list_examples(text: str) -> Iterator[Example]:
    """Yield the commands of all console blocks, in order."""
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"(?m)^\$ ", block)[1:]:
            command, lines = _split_command(part.splitlines())
            yield Example(command, lines)


def find_summary(text: str) -> tuple[str, ...]:
    """The lines with which the quickstart is said to end."""
    (block,) = re.findall(r"```text\n(8\. Summary\n.*?)```", text, re.DOTALL)
    return tuple(block.splitlines())


def _split_command(lines: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """A command goes on where a line ends in a backslash, or within quotation marks."""
    command, count = "", 0
    for line in lines:
        count += 1
        command += line.removesuffix("\\").rstrip() + " "
        quoted = command.count('"') % 2 or command.count("'") % 2
        if not line.endswith("\\") and not quoted:
            break
    return " ".join(command.split()), tuple(lines[count:])


def mask(line: str) -> str:
    """A line without its numbers, names of trials and widths: what a small study prints as well."""
    named = re.sub(r"(conditional|lambda[\d.e-]+)-style\d+(-seed\d+)?", "TRIAL", line)
    return re.sub(r"[\s─═]+", " ", re.sub(r"[-+]?\d[\d.,]*", "#", named)).strip()


def compare(told: Sequence[str], found: Sequence[str]) -> list[str]:
    """Lines of the README that were not printed; `...` stands for lines that are left out."""
    return [line for line in told if line != "..." and line not in found]


def main(folder: Path = Path("results/quickstart")) -> int:
    """Compare all examples that can be run here; the number of lines that differ."""
    text, missing = README.read_text(encoding="utf-8"), 0
    store = study.open(folder)
    with TemporaryDirectory() as name:
        place = Path(name)
        (place / "results").mkdir()
        (place / "results" / "quickstart").symlink_to(folder.resolve())
        _write_tunes(store, place)
        archives = list(Path(os.environ.get("CF_DATA", place)).rglob("nottingham-dataset*.zip"))
        if archives:
            (place / "nottingham-dataset.zip").symlink_to(archives[0].resolve())
        for example in list_examples(text):
            if "nottingham" in example.command and not archives:
                continue
            missing += _tell(example.command, example.lines, run_command(example.command, place))
        summary = run_command("cf-study run quickstart", place)
        missing += _tell("cf-study run quickstart", find_summary(text), summary)
    return missing


def _write_tunes(store: Store, place: Path) -> None:
    """The two tunes of the study's example, as left.mid and right.mid."""
    rows = store.examples.filter(pl.col("row") == 0).collect()
    wanted = dict(
        zip(rows.select("left_song", "right_song").row(0), ("left", "right"), strict=True)
    )
    for name, content in read_builtin_tunes():
        if side := wanted.get(Path(name).stem):
            (place / name).write_bytes(content)
            melody = read_file(place / name)
            path = place / f"{side}.mid"
            write_midi(list(melody.notes), path, melody.tempo, melody.bars[0].meter)


def run_command(command: str, place: Path) -> list[str]:
    """Run a command of `cf-study` in a folder; the lines that it prints."""
    words = [str(PROGRAM), *shlex.split(command)[1:]]
    environment = os.environ | {"COLUMNS": "1000"}
    done = subprocess.run(
        words, cwd=place, capture_output=True, text=True, check=False, env=environment
    )
    return (done.stdout + done.stderr).splitlines()


def _tell(command: str, told: Sequence[str], found: Sequence[str]) -> int:
    missing = compare(told, found)
    print(f"{'differs' if missing else 'as told'}: {command}")
    for line in missing:
        print(f"  README: {line}")
    if missing:
        print("\n".join(f"  here:   {line}" for line in found[:40]))
    return len(missing)


if __name__ == "__main__":
    sys.exit(min(1, main(*map(Path, sys.argv[1:]))))
