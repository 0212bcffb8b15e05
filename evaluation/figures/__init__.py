"""Figures, drawn from data frames and tokens alone, without global plotting state.

Equal frames give equal bytes, whatever the order of their rows. Names from users' files are drawn
literally, never as markup or mathematics. Where a frame holds nothing to draw, `FigureError` (of
`cf_core.errors`) says what it lacks.
"""

from evaluation.figures.attainment import attainment_difference_figure, attainment_figure
from evaluation.figures.canvas import save
from evaluation.figures.costs import cost_figure
from evaluation.figures.frontiers import frontier_figure, iteration_figure
from evaluation.figures.likeness import likeness_figure
from evaluation.figures.rolls import piano_roll_figure, style_figure
from evaluation.figures.search import Axis, search_figure
from evaluation.figures.statistics import song_distance_figure, transition_figure
from evaluation.figures.verdicts import verdict_figure

__all__ = [
    "Axis",
    "attainment_difference_figure",
    "attainment_figure",
    "cost_figure",
    "frontier_figure",
    "iteration_figure",
    "likeness_figure",
    "piano_roll_figure",
    "save",
    "search_figure",
    "song_distance_figure",
    "style_figure",
    "transition_figure",
    "verdict_figure",
]
