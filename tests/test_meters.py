"""Segments of several meters in one format: steps, marks, slots, and what is made of them.

It is long, since every part of the model is tried on all meters.
"""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cf_core.batches import Member
from cf_core.continuation import (
    Continuation,
    ContinuationSettings,
    ContinuationTrainer,
    drop_hanging_holds,
    reverse,
)
from cf_core.corpus import Corpus, Split, load_corpus
from cf_core.errors import MelodyError
from cf_core.fusion import FusionSettings, Latents
from cf_core.grid import GridBar, make_segment, to_grid
from cf_core.ingest import ingest
from cf_core.kinds import Groups, decode_kinds, encode_kinds
from cf_core.melody import (
    COMMON_METERS,
    FIRST_PITCH,
    HOLD,
    REST,
    Bar,
    Melody,
    MelodyFormat,
    Note,
    bar_length,
    to_notes,
)
from cf_core.nets import initialise
from cf_core.pack import PackTrainer
from cf_core.seeding import make_random
from cf_core.vae import MelodyVAE, VAESettings, VAETrainer, report_reconstruction, transpose
from evaluation.classifier import ClassifierSettings, SearchClassifier
from evaluation.evaluator import Evaluator
from evaluation.judge import Judge, JudgeSettings
from evaluation.likeness import describe_pairs
from evaluation.negatives import _mix, _repeat_nearly
from evaluation.rivals import Tools
from evaluation.rivals.retrieval import Retrieval
from evaluation.sources import unpaired
from tests.arrays import find_statistics, lift

EVERY = MelodyFormat(meters=("common",), steps_per_beat=12, subdivisions=(4, 3))
C4 = FIRST_PITCH + 60 - EVERY.lowest
SMALL = VAESettings(latent_dim=5, hidden=16, embedding=4, steps=4, batch=8)


def draw_segments(count: int, seed: int = 0, form: MelodyFormat = EVERY) -> np.ndarray:
    """Segments of all kinds in turn, with notes, holds and rests at random."""
    random = np.random.default_rng(seed)
    tokens = random.choice([REST, HOLD, C4, C4 + 2, C4 + 7], (count, form.steps))
    marked = form.put_marks(tokens, np.arange(count) % len(form.kinds))
    return drop_hanging_holds(torch.from_numpy(marked).long()).numpy().astype(np.int16)


# ---- steps -------------------------------------------------------------------


def test_the_steps_of_a_bar_by_hand() -> None:
    form = MelodyFormat(meters=("2/4", "3/8"), steps_per_beat=12, subdivisions=(4, 3))
    assert form.bars == ((0, 3, 4, 6, 8, 9, 12, 15, 16, 18, 20, 21), (0, 3, 6, 9, 12, 15))
    assert form.lengths == (24, 12)
    assert form.steps == 25  # and a mark
    quarter = [1 / 4, 1 / 12, 1 / 6, 1 / 6, 1 / 12, 1 / 4]
    assert form.step_lengths[0] == pytest.approx([*quarter * 4, 0])
    assert form.step_lengths[1] == pytest.approx([1 / 4] * 12 + [0] * 13)
    assert form.marks.tolist() == [[False] * 24 + [True], [False] * 12 + [True] * 13]
    # The second bar of 3/8 starts where the second bar of 2/4 does.
    assert form.slots[1].tolist() == [*range(6), *[-1] * 6, *range(6, 12), *[-1] * 6]
    assert form.slot_of[1][:12].tolist() == [*range(6), *range(12, 18)]


def test_meters_of_one_kind() -> None:
    assert EVERY.meters == COMMON_METERS
    assert EVERY.find_kind("2/2") == EVERY.find_kind("4/4") == 0
    assert EVERY.find_kind("3/4") != EVERY.find_kind("6/8")
    with pytest.raises(KeyError):
        EVERY.find_kind("5/4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subdivisions": (4, 3)}, "3 parts of a quarter note are not on a grid of 4"),
        ({"subdivisions": (0,)}, "0 parts"),
        ({"meters": ("3/8",), "steps_per_beat": 3}, "3/8 must have bars of a whole number"),
    ],
)
def test_what_is_no_grid(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MelodyFormat(**settings)  # type: ignore[arg-type]


# ---- notes, and back -----------------------------------------------------------


@st.composite
def melodies(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """A meter, and tokens of a segment of its kind in which every hold has a note."""
    meter = draw(st.sampled_from(COMMON_METERS))
    kind = EVERY.find_kind(meter)
    steps = draw(st.lists(st.sampled_from([REST, HOLD, C4, C4 + 3]), min_size=48, max_size=48))
    marked = EVERY.put_marks(np.array([[*steps, 0]]), np.array([kind]))
    whole: np.ndarray = drop_hanging_holds(torch.from_numpy(marked).long()).numpy()
    return meter, whole[0].astype(np.int16)


@given(melodies())
def test_tokens_to_notes_to_grid_and_back(drawn: tuple[str, np.ndarray]) -> None:
    meter, tokens = drawn
    length = bar_length(meter)
    bars = tuple(Bar(length * n, length, meter) for n in range(2))
    melody = Melody("a", "A", tuple(to_notes(tokens, EVERY)), bars)
    assert make_segment(to_grid(melody, 12), EVERY).tolist() == tokens.tolist()


def bars_of(meter: str, *notes: tuple[str, str, int]) -> list[GridBar]:
    length = bar_length(meter)
    made = tuple(Note(Fraction(onset), Fraction(lasts), pitch) for onset, lasts, pitch in notes)
    bars = tuple(Bar(length * n, length, meter) for n in range(2))
    return to_grid(Melody("a", "A", made, bars), 12)


def test_a_triplet_is_on_the_grid_of_quarters_but_not_of_eighths() -> None:
    triplet = [("0", "1/3", 60), ("1/3", "1/3", 62), ("2/3", "1/3", 64)]
    tokens = make_segment(bars_of("2/4", *triplet), EVERY)
    assert tokens[:6].tolist() == [C4, HOLD, C4 + 2, HOLD, C4 + 4, HOLD]
    with pytest.raises(MelodyError, match="between two steps"):
        make_segment(bars_of("6/8", *triplet), EVERY)


def test_a_sextuplet_is_between_steps() -> None:
    with pytest.raises(MelodyError, match="between two steps"):
        make_segment(bars_of("2/4", ("0", "1/6", 60), ("1/6", "1/6", 62)), EVERY)


def test_bars_of_two_kinds_are_no_segment() -> None:
    mixed = [bars_of("3/4", ("0", "1", 60))[0], bars_of("6/8", ("0", "1", 60))[0]]
    with pytest.raises(MelodyError, match="bars of 3/4 and 6/8"):
        make_segment(mixed, EVERY)


# ---- corpora -------------------------------------------------------------------


def test_a_corpus_of_two_kinds(tmp_path: Path) -> None:
    """Songs of 3/4 and of 6/8, and one that changes: no window and no pair has both."""
    form = MelodyFormat(meters=("3/4", "6/8"), bars_per_segment=2)
    for song in range(40):
        notes = np.random.default_rng(song).choice(list("CDEFGABcdefg"), (8, 3))
        bars = ["".join(f"{note}2" for note in bar) for bar in notes]
        if song == 0:
            bars[4] = f"[M:6/8]{bars[4]}"
        head = f"X:1\nT:Tune\nM:{'6/8' if song % 2 else '3/4'}\nL:1/8\nK:C\n"
        (tmp_path / f"song{song:02}.abc").write_text(head + "|".join(bars) + "|]\n")
    ingest(tmp_path, tmp_path / "x.parquet")
    loaded = load_corpus(tmp_path / "x.parquet", form, 0)
    assert set(loaded.kinds.tolist()) == {0, 1}
    own = loaded.kinds[loaded.song == loaded.song_ids.index("song00")]
    assert own.tolist() == [0, 0, 0, 1, 1, 1]  # no window over the change of meter
    assert (loaded.kinds[loaded.pairs[:, 0]] == loaded.kinds[loaded.pairs[:, 1]]).all()
    pairs = unpaired(loaded, Split.TRAIN, 500, np.random.default_rng(0))
    assert (loaded.kinds[pairs[:, 0]] == loaded.kinds[pairs[:, 1]]).all()
    assert (loaded.song[pairs[:, 0]] != loaded.song[pairs[:, 1]]).all()


def test_partners_of_one_kind_are_equally_likely() -> None:
    groups = Groups.of(torch.tensor([2, 0, 2, 2, 0]))
    like = torch.tensor([0, 1]).repeat(3000)
    found = groups.match(torch.rand(6000, generator=make_random(0, "chance")), like)
    assert (groups.kinds[found] == groups.kinds[like]).all()
    counts = found[like == 0].bincount(minlength=5).tolist()
    assert [count > 0 for count in counts] == [True, False, True, True, False]
    assert min(counts[0], counts[2], counts[3]) > 900


def test_kinds_to_codes_and_back() -> None:
    kinds = torch.tensor([0, 3, 1, 2])
    assert encode_kinds(kinds, 4).tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert torch.equal(decode_kinds(encode_kinds(kinds, 4)), kinds)
    assert encode_kinds(torch.zeros(3, dtype=torch.int64), 1).shape == (3, 0)


# ---- the core ------------------------------------------------------------------


def core() -> MelodyVAE:
    made = MelodyVAE(EVERY, SMALL)
    initialise(made, make_random(0, "core"))
    return made


def test_a_segment_is_decoded_with_the_marks_of_its_kind() -> None:
    kinds = np.arange(70) % len(EVERY.kinds)
    decoded = core().decode_tokens(torch.randn(70, 5, generator=make_random(0, "z")), kinds)
    assert EVERY.find_kinds(decoded).tolist() == kinds.tolist()
    assert ((decoded < 0).sum(1) == EVERY.steps - np.array(EVERY.lengths)[kinds]).all()
    assert torch.equal(
        drop_hanging_holds(torch.from_numpy(decoded).long()).short(), torch.from_numpy(decoded)
    )


def test_the_kind_must_be_said() -> None:
    with pytest.raises(ValueError, match="kinds: must say which of 4/4"):
        core().decode_tokens(torch.zeros(1, 5))


def test_what_a_network_reads_lies_at_one_place_of_the_bar_in_every_meter() -> None:
    """The same notes in bars of 2/4 and of 3/4 differ only by the input of the kind."""
    made = core()
    with torch.no_grad():
        made.read.weight[:, -len(EVERY.kinds) + 1 :] = 0.0
        made.tokens.weight[REST] = 0.0  # a rest then reads like a slot that a meter lacks
    bar = [C4, *[HOLD] * 5, C4 + 2, *[HOLD] * 5]
    two, three = [*bar, *bar], [*bar, *[REST] * 6, *bar, *[REST] * 6]
    rows = [[*row, *[0] * (EVERY.steps - len(row))] for row in (two, three)]
    kinds = np.array([EVERY.find_kind("2/4"), EVERY.find_kind("3/4")])
    mean, _ = made.posteriors(EVERY.put_marks(np.array(rows), kinds))
    torch.testing.assert_close(mean[0], mean[1])


def test_marks_cost_nothing_and_count_nowhere() -> None:
    tokens = draw_segments(28)
    trainer = VAETrainer(tokens, EVERY, SMALL, 0)
    assert torch.isfinite(trainer.update()["reconstruction"])
    assert all(torch.isfinite(p).all() for p in trainer.vae.parameters())
    made = core()
    report = report_reconstruction(made, tokens)
    right = total = 0
    decoded = made.decode_tokens(made.encode_mean(tokens), EVERY.find_kinds(tokens))
    for one, other, kind in zip(tokens, decoded, EVERY.find_kinds(tokens), strict=True):
        for step in range(EVERY.lengths[kind]):
            right, total = right + (one[step] == other[step]), total + 1
    assert report["token_accuracy"] == pytest.approx(right / total)


def test_the_loss_is_that_of_the_steps_one_by_one() -> None:
    tokens = draw_segments(14)
    trainer = VAETrainer(tokens, EVERY, SMALL, 3)
    random = make_random(3, "vae", 0)
    rows = torch.randint(14, (SMALL.batch,), generator=random)
    drawn = transpose(torch.as_tensor(tokens).long()[rows], EVERY, 5, 6, random)
    kinds = torch.from_numpy(EVERY.find_kinds(drawn.numpy()))
    mean, deviation = trainer.vae.encode(drawn)
    z = mean + deviation * torch.randn(mean.shape, generator=random)
    likely = torch.log_softmax(trainer.vae.decode(z, kinds), -1).detach()
    expected = 0.0
    for row, kind in enumerate(kinds.tolist()):
        for step in range(EVERY.lengths[kind]):
            expected -= float(likely[row, step, drawn[row, step]]) / len(rows)
    assert float(trainer.update()["reconstruction"]) == pytest.approx(expected, rel=1e-4)


# ---- models of notes -------------------------------------------------------------


def network() -> Continuation:
    made = Continuation(EVERY, ContinuationSettings(hidden=8))
    initialise(made, make_random(0, "continuation"))
    return made.eval()


def test_pairs_of_all_kinds_are_rated_as_each_by_itself() -> None:
    made = network()
    left, right = (torch.from_numpy(draw_segments(21, seed)).long() for seed in (0, 1))
    rated = made.per_step(right, left)
    for row, kind in enumerate(EVERY.find_kinds(left.numpy())):
        steps = EVERY.lengths[kind]
        joined = torch.cat((left[row, :steps], right[row, :steps]))[None]
        with torch.no_grad():
            alone = made(joined, int(kind), steps)[0].gather(1, right[row, :steps, None])[:, 0]
        torch.testing.assert_close(rated[row, :steps], alone)
        assert (rated[row, steps:] == 0).all()


def test_what_is_drawn_keeps_its_kind() -> None:
    left, right = (torch.from_numpy(draw_segments(21, seed)).long() for seed in (0, 1))
    chance = torch.rand(right.shape, generator=make_random(0, "chance"))
    drawn = network().rewrite(left, right, torch.zeros(21), chance)
    assert torch.equal(drawn < 0, right < 0)
    assert torch.equal(drop_hanging_holds(drawn), drawn)
    dear = network().rewrite(left, right, torch.full((21,), 100.0), chance)
    assert torch.equal(dear, right)


def test_backwards_each_note_of_any_meter_sounds_at_the_mirrored_time() -> None:
    tokens = torch.from_numpy(draw_segments(35)).long()
    for before, after in zip(tokens.numpy(), reverse(tokens).numpy(), strict=True):
        length = bar_length(EVERY.kinds[EVERY.find_kinds(before[None])[0]]) * 2
        mirrored = [
            (length - note.onset - note.duration, note.duration, note.pitch)
            for note in reversed(to_notes(before, EVERY))
        ]
        assert [tuple(note) for note in to_notes(after, EVERY)] == mirrored
    assert torch.equal(reverse(reverse(tokens)), tokens)


def test_a_model_of_notes_learns_all_kinds() -> None:
    tokens = torch.from_numpy(draw_segments(42)).long()
    pairs = torch.stack((torch.arange(35), torch.arange(35) + 7), 1)
    settings = ContinuationSettings(hidden=8, steps=40, batch=4, learning_rate=0.03)
    trainer = ContinuationTrainer(tokens, pairs, EVERY, settings, 0)
    before = trainer.continuation.log_probability(tokens[7:], tokens[:35]).reshape(5, 7).mean(0)
    for trainer.step in range(settings.steps):
        trainer.update()
    after = trainer.continuation.log_probability(tokens[7:], tokens[:35]).reshape(5, 7).mean(0)
    assert (after > before).all()


def test_the_loss_of_a_step_is_that_of_its_pairs_one_by_one() -> None:
    tokens = drop_hanging_holds(torch.from_numpy(draw_segments(42)).long())
    pairs = torch.stack((torch.arange(35), torch.arange(35) + 7), 1)
    settings = ContinuationSettings(
        hidden=8, batch=20, dropout=0.0, transpose_down=0, transpose_up=0
    )
    trainer = ContinuationTrainer(tokens, pairs, EVERY, settings, 0)
    rows = torch.randint(35, (20,), generator=make_random(0, "continuation", 0))
    nats, loss = 0.0, torch.zeros(())
    for left, right in tokens[pairs[rows]]:
        kind = int(EVERY.find_kinds(left[None].numpy())[0])
        joined = torch.cat((left[: EVERY.lengths[kind]], right[: EVERY.lengths[kind]]))[None]
        likely = trainer.continuation(joined, kind, joined.shape[1])
        own = -likely.gather(2, joined[..., None]).mean()
        loss = loss + own / 20
        nats += own.item() * EVERY.lengths[kind] / 20
    wanted = torch.autograd.grad(loss, trainer.continuation.output.weight)[0]
    assert float(trainer.update()["loss"]) == pytest.approx(nats, rel=1e-5)
    given = trainer.continuation.output.weight.grad
    # What was clipped has another length, and the same direction.
    assert given is not None
    torch.testing.assert_close(given / given.norm(), wanted / wanted.norm(), atol=1e-5, rtol=1e-4)


# ---- the map ---------------------------------------------------------------------


def test_the_map_and_its_data_know_the_kind() -> None:
    kinds = torch.arange(40) % 4 // 2
    rows = torch.arange(0, 40, 2)
    mean = torch.randn(40, 3, generator=make_random(0, "latents")) + 10.0 * kinds[:, None]
    pairs = torch.stack((rows, rows + 1), 1)
    data = Latents(mean, torch.zeros(40, 3), pairs, torch.ones(3), encode_kinds(kinds, 3))
    chance = torch.rand(3, 200, generator=make_random(0, "chance"))
    drawn, codes = data.sample(chance, torch.zeros(3, 200, 6))
    for kind_of_pair in (0, 1):  # unpaired, paired
        far = drawn[kind_of_pair] > 5
        assert torch.equal(far, (codes[kind_of_pair, :, :1] > 0).expand(-1, 6))
    settings = FusionSettings(hidden=8, batch=4, steps=3)
    trainer = PackTrainer(data, settings, [Member(0.1, 2, 0, 1e-3), Member(None, 1, 0, 1e-3)])
    for _ in range(3):
        trainer.update()
    for place in (0, 1):
        made = trainer.take_generator(place)
        pair = mean[:2], mean[2:4]
        styles = torch.zeros(2, made.style_dim)
        same = made.iterate(pair, styles, [1], 0.1, torch.tensor([1, 1]))[1]
        other = made.iterate(pair, styles, [1], 0.1, torch.tensor([0, 2]))[1]
        assert not torch.equal(same[0][0], other[0][0])
        with pytest.raises(ValueError, match="kinds: must say"):
            made.iterate(pair, styles, [1], 0.1)


def test_retrieval_takes_neighbours_of_the_same_kind_only() -> None:
    made, random = core(), make_random(0, "bank")
    bank = torch.randn(2, 30, 5, generator=random)
    own = np.arange(30) % 3
    left, right = torch.randn(2, 12, 5, generator=random)
    kinds = np.arange(12) % 3
    classifier = SearchClassifier(5, ClassifierSettings(hidden=8))
    tools = Tools(classifier, torch.ones(5), (bank[0], bank[1]), made, own)
    rival = Retrieval()
    transform = rival.transform(rival.settings(), kinds, tools)
    counts = (1, 10, 30)  # only ten of the thirty are of each kind
    for step in transform((left, right), counts, make_random(0, "none")):
        for row, found in enumerate(step.outputs[0]):
            (place,) = (bank[0] == found).all(1).nonzero().flatten().tolist()
            assert own[place] == kinds[row]
            assert torch.equal(step.outputs[1][row], bank[1][place])


# ---- what is measured --------------------------------------------------------------


def test_statistics_do_not_depend_on_marks() -> None:
    """A bar of 2/4 measures what its notes measure, whatever else its format knows."""
    alone = MelodyFormat(meters=("2/4",), steps_per_beat=12, subdivisions=(4, 3))
    tokens = draw_segments(10, form=alone)
    padded = np.concatenate((tokens, np.zeros((10, EVERY.steps - alone.steps), np.int16)), axis=1)
    marked = EVERY.put_marks(padded, np.full(10, EVERY.find_kind("2/4")))
    one, other = find_statistics(tokens, alone), find_statistics(marked, EVERY)
    for name in one:
        assert other[name] == pytest.approx(one[name], nan_ok=True)


def test_mean_duration_is_in_quarter_notes() -> None:
    triplet = [C4, HOLD, C4, HOLD, C4, HOLD, *[REST] * 18]
    row = EVERY.put_marks(np.array([[*triplet, *[0] * 25]]), np.array([EVERY.find_kind("2/4")]))
    assert find_statistics(row, EVERY)["mean_duration"][0] == pytest.approx(1 / 3)


def test_bins_are_ranks_among_training_segments_of_the_same_meter() -> None:
    """Segments of 2/4 have about twice the notes of those of 3/8, and equal ranks."""
    form = MelodyFormat(meters=("2/4", "3/8"), bars_per_segment=2)
    tokens, song = draw_segments(480, form=form), np.repeat(np.arange(60), 8)
    pairs = np.flatnonzero(song[2:] == song[:-2])[:, None] + [0, 2]  # kinds take turns
    corpus = Corpus(
        form=form,
        tokens=tokens,
        song=song,
        bar=np.arange(480),
        song_ids=tuple(map(str, range(60))),
        split=np.arange(60) // 20,
        pairs=pairs,
        struck_again=0,
        content_hash="0",
    )
    second = Continuation(form, ContinuationSettings(hidden=8))
    made, settings = MelodyVAE(form, SMALL), JudgeSettings(hidden=8, members=1)
    judges = {split: Judge(form, settings, second) for split in (Split.VALIDATION, Split.TEST)}
    classifier = SearchClassifier(5, ClassifierSettings(hidden=8))
    evaluator = Evaluator(corpus, made, classifier, judges, 0, second)
    records = evaluator.real_outcomes(Split.TEST)
    counts = (tokens >= FIRST_PITCH).sum(1)
    rows = corpus.pairs_of(Split.TEST)
    assert len(rows) == records.height == 20 * 6
    for kind, meter in enumerate(form.kinds):
        known = np.sort(counts[:160][np.arange(160) % 2 == kind])  # those of training songs
        edges = sorted({*known[9:70:10].tolist()} - {known[0]})  # at n/8 of the 80 segments
        own = records["meter"].to_numpy() == meter
        assert own.sum() == 60
        for half, column in enumerate(("note_count_left", "note_count_right")):
            expected = [sum(edge <= count for edge in edges) for count in counts[rows[own, half]]]
            assert records[column].to_numpy()[own].tolist() == expected


def test_negatives_are_mixed_within_their_kind() -> None:
    one, other = draw_segments(70), draw_segments(70, 1)
    random = np.random.default_rng(0)
    for made in (*_mix(one, other, EVERY, random), _repeat_nearly(one, other, EVERY, random)):
        assert EVERY.find_kinds(made).tolist() == EVERY.find_kinds(one).tolist()
        assert ((made < 0) == (one < 0)).all()


def test_features_are_finite_and_marks_are_in_none() -> None:
    left, right = draw_segments(35), draw_segments(35, 1)
    features, halves = describe_pairs(lift(left, right), EVERY)
    assert features.isfinite().all()
    assert halves < features.shape[1]
