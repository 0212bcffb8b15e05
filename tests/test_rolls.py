from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes

from cf_core.errors import FigureError
from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from evaluation.figures import piano_roll_figure, save, style_figure

FORM = MelodyFormat(meters=("2/4",), bars_per_segment=2)
"""Segments of two bars of 8 sixteenths."""

C4, E4, G5 = (FIRST_PITCH + pitch - FORM.lowest for pitch in (60, 64, 79))
INPUTS = np.array([[C4, HOLD, HOLD, HOLD, REST, E4, E4, HOLD] + [REST] * 8, [HOLD] * 15 + [G5]])
OUTPUTS = np.array([[REST] * 16, [C4] + [HOLD] * 15])


def blocks(panel: Axes) -> list[tuple[float, float, float]]:
    """Onset, pitch and duration of each block that is not an onset's edge."""
    boxes = [bar for group in panel.containers for bar in group]
    return [
        (box.get_x(), box.get_y() + box.get_height() / 2, box.get_width())
        for box in boxes
        if box.get_facecolor() != (0, 0, 0, 1)
    ]


def test_piano_roll_draws_the_notes_on_one_time_line() -> None:
    above, below = piano_roll_figure(INPUTS, OUTPUTS, FORM).axes
    assert blocks(above) == [
        (0, 60, 1),
        (1.25, 64, 0.25),
        (1.5, 64, 0.5),
        (4 + 3.75, 79, 0.25),  # the right half starts after four quarter notes
    ]
    assert blocks(below) == [(4, 60, 4)]


def test_piano_roll_shows_onsets_bars_seam_and_pitch_names() -> None:
    above, _ = piano_roll_figure(INPUTS, OUTPUTS, FORM).axes
    edges = [
        bar.get_x()
        for group in above.containers
        for bar in group
        if bar.get_facecolor() == (0, 0, 0, 1)
    ]
    assert edges == [0, 1.25, 1.5, 7.75]
    bars = {float(np.asarray(line.get_xdata())[0]): line.get_linewidth() for line in above.lines}
    assert list(bars) == [0, 2, 4, 6, 8]
    assert max(bars, key=lambda bar: bars[bar]) == 4
    named = {text.get_text(): y for text, y in zip(above.get_yticklabels(), above.get_yticks())}  # noqa: B905
    assert named["C4"] == 60
    assert named["G5"] == 79


def test_piano_roll_of_silence_is_drawn() -> None:
    silence = np.zeros((2, 16), np.int64)
    assert [blocks(panel) for panel in piano_roll_figure(silence, silence, FORM).axes] == [[], []]


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = (r"<script>alert(1)</script> $\frac{$", "--> a\nb\x00c \udc80 " + "x" * 80)
    figure = piano_roll_figure(INPUTS, OUTPUTS, FORM, names)
    svg, png = save(figure, tmp_path / "lambda0.1 & more")
    assert svg.name == "lambda0.1 & more.svg"
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "<script" not in svg.read_text()
    ET.fromstring(svg.read_text())  # noqa: S314
    left, right = (text.get_text() for text in figure.axes[0].texts)
    assert left == names[0]
    assert right.startswith("--> a�b�c � x")
    assert len(right) == 40


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = piano_roll_figure(INPUTS, OUTPUTS, FORM)

    def full_disk(partial: Path, **_: object) -> None:
        partial.write_text("<svg")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(FigureError, match=r"roll\.svg: can't be written \(No space left"):
        save(figure, tmp_path / "roll")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FigureError, match="choose another place"):
        save(piano_roll_figure(INPUTS, OUTPUTS, FORM), tmp_path / "file" / "roll")


def examples(label: str = "s = 0.1, 0.9", song: str = "jig") -> pl.DataFrame:
    """The inputs and one style's outputs, in the wrong order."""
    shared = {"trial": "ours-seed0", "lambda": 0.1, "iteration": 2}
    songs = {"left_song": song, "right_song": "reel"}
    rows = [
        {**shared, "row": 1, "label": label, **songs, "left": OUTPUTS[0], "right": OUTPUTS[1]},
        {**shared, "row": 0, "label": "inputs", **songs, "left": INPUTS[0], "right": INPUTS[1]},
    ]
    return pl.DataFrame(rows).with_columns(pl.col("left", "right").cast(pl.List(pl.UInt8)))


def test_styles_are_drawn_below_their_inputs() -> None:
    figure = style_figure(examples(), FORM)
    expected = piano_roll_figure(INPUTS, OUTPUTS, FORM).axes
    assert [blocks(panel) for panel in figure.axes] == [blocks(panel) for panel in expected]
    assert [panel.get_title("left") for panel in figure.axes] == ["inputs", "s = 0.1, 0.9"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["jig", "reel"]
    assert figure.get_suptitle() == "ours-seed0, λ 0.1, 2 iterations"


@pytest.mark.slow
def test_styles_are_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    first = save(style_figure(examples(), FORM), tmp_path / "a")
    second = save(style_figure(examples().reverse(), FORM), tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_labels_and_songs_of_styles_are_drawn_as_they_are(tmp_path: Path) -> None:
    figure = style_figure(examples(r"$\frac{$ <b>", "$x_1$\x00"), FORM)
    assert figure.axes[1].get_title("left") == r"$\frac{$ <b>"
    assert figure.axes[0].texts[0].get_text() == "$x_1$\N{REPLACEMENT CHARACTER}"
    svg, _ = save(figure, tmp_path / "style")
    ET.fromstring(svg.read_text())  # noqa: S314


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (examples().clear(), "run the study first"),
        (pl.concat([examples(), examples(song="air")]), "rows of 2 kinds are mixed"),
        (examples().with_columns(left=pl.lit([1, 2])), "does not have the 16 steps"),
    ],
)
def test_styles_that_can_not_be_drawn_are_said_in_one_line(
    frame: pl.DataFrame, message: str
) -> None:
    with pytest.raises(FigureError, match=message) as raised:
        style_figure(frame, FORM)
    assert "\n" not in str(raised.value)
