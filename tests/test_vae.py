"""The core VAE, its augmentation and its report."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from cf_core.melody import FIRST_PITCH, HOLD, REST, MelodyFormat
from cf_core.nets import initialise
from cf_core.seeding import make_random
from cf_core.training import train
from cf_core.vae import (
    MelodyVAE,
    VAESettings,
    VAETrainer,
    decode_likeliest,
    report_prior,
    report_reconstruction,
    transpose,
)

FORM = MelodyFormat(bars_per_segment=1, lowest=60, highest=71)
SETTINGS = VAESettings(latent_dim=4, hidden=16, embedding=8, batch=8, steps=5)


def melodies(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    drawn = random.integers(FIRST_PITCH, FORM.vocabulary, (count, FORM.steps))
    drawn[random.random(drawn.shape) < 0.5] = HOLD
    drawn[:, 0] = random.integers(FIRST_PITCH, FORM.vocabulary, count)
    return drawn.astype(np.uint8)


def small() -> MelodyVAE:
    vae = MelodyVAE(FORM, SETTINGS)
    initialise(vae, make_random(0, "vae"))
    return vae


segments = st.lists(
    st.lists(st.integers(0, FORM.vocabulary - 1), min_size=FORM.steps, max_size=FORM.steps),
    min_size=1,
    max_size=5,
)


@given(segments, st.integers(0, 12), st.integers(0, 12), st.integers(0, 100))
def test_transposing_keeps_rhythm_intervals_and_range(
    rows: list[list[int]], down: int, up: int, seed: int
) -> None:
    tokens = torch.tensor(rows)
    moved = transpose(tokens, FORM, down, up, make_random(seed, "shift"))
    pitched = tokens >= FIRST_PITCH
    assert torch.equal(moved >= FIRST_PITCH, pitched)
    assert torch.equal(moved[~pitched], tokens[~pitched])
    assert moved.max() < FORM.vocabulary
    for before, after in zip(tokens, moved, strict=True):
        shifts = (after - before)[before >= FIRST_PITCH].unique().tolist()
        assert len(shifts) <= 1
        assert all(-down <= shift <= up for shift in shifts)


def test_every_allowed_transposition_is_equally_likely() -> None:
    tokens = torch.full((9000, 4), FIRST_PITCH + 1)
    shifts = (transpose(tokens, FORM, 5, 1, make_random(0, "many")) - tokens)[:, 0]
    # One semitone down is all that the range leaves, so -1, 0 and 1 remain.
    counts = [int((shifts == shift).sum()) for shift in (-1, 0, 1)]
    assert sum(counts) == 9000
    assert all(abs(count - 3000) < 200 for count in counts)


def test_the_report_worked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    true = np.array([[2, HOLD, 3, REST], [4, HOLD, HOLD, 5]])
    decoded = np.array([[2, HOLD, 3, REST], [4, HOLD, REST, 6]])
    vae = small()
    means, deviations = torch.zeros(2, 4), torch.full((2, 4), 0.5)
    monkeypatch.setattr(vae, "posteriors", lambda _tokens: (means, deviations))
    monkeypatch.setattr(vae, "decode_tokens", lambda _z, _kinds: decoded)
    report = report_reconstruction(vae, true)
    kl = 4 * float(kl_divergence(Normal(0.0, 0.5), Normal(0.0, 1.0)))
    assert report == {
        "token_accuracy": 6 / 8,
        "onset_pitch_recall": 3 / 4,
        "exact_segments": 1 / 2,
        "kl": pytest.approx(kl, rel=1e-6),
        "active_units": 0,
        "aggregate_kl": pytest.approx(kl, rel=1e-6),
    }


def test_the_aggregate_posterior_is_held_against_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, tokens = small(), np.full((6, FORM.steps), FIRST_PITCH)
    means = torch.randn(6, 4, generator=make_random(0, "means")) * torch.tensor(
        [1.0, 1.0, 0.05, 0.0]
    )
    deviations = torch.rand(6, 4, generator=make_random(0, "deviations")) + 0.1
    monkeypatch.setattr(vae, "posteriors", lambda _tokens: (means, deviations))
    report = report_reconstruction(vae, tokens)
    centre = means.numpy().astype(float).mean(0)
    covariance = np.diag((deviations.numpy().astype(float) ** 2).mean(0))
    for row in means.numpy().astype(float):
        covariance += np.outer(row - centre, row - centre) / 6
    aggregate = MultivariateNormal(torch.tensor(centre), torch.tensor(covariance))
    prior = MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double())
    assert report["active_units"] == 2
    assert report["aggregate_kl"] == pytest.approx(float(kl_divergence(aggregate, prior)))


@pytest.mark.parametrize(("steps", "vocabulary"), [(1, 4), (3, 4), (4, 5), (5, 3)])
def test_the_likeliest_tokens_are_the_best_of_all_that_hold_something(
    steps: int, vocabulary: int
) -> None:
    logits = 2 * torch.randn(60, steps, vocabulary, generator=make_random(0, "logits"))
    found = decode_likeliest(logits).tolist()
    sequences = [
        sequence
        for sequence in product(range(vocabulary), repeat=steps)
        if all(now != HOLD or before != REST for before, now in pairwise((REST, *sequence)))
    ]
    for row, tokens in zip(logits, found, strict=True):
        scores = {s: sum(row[i, token].item() for i, token in enumerate(s)) for s in sequences}
        assert tuple(tokens) == max(sequences, key=lambda s: scores[s])


def test_a_prior_report_counts_melodies(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = small()
    decoded = np.array([[2, HOLD, 3, REST], [2, REST, HOLD, 3]])
    monkeypatch.setattr(vae, "decode_tokens", lambda z, _kinds: decoded.repeat(len(z) // 2, 0))
    logits = torch.zeros(4, FORM.steps, FORM.vocabulary)
    logits[:3, :, FIRST_PITCH] = 1.0
    logits[3, :, HOLD] = 1.0
    monkeypatch.setattr(vae, "decode", lambda _z, _kinds: logits)
    report = report_prior(vae, np.zeros(4, int), make_random(0, "prior"))
    assert report == {"valid_prior": 0.5, "valid_prior_by_step": 0.75}


def test_the_training_loss_is_the_evidence_lower_bound() -> None:
    trainer = VAETrainer(melodies(20), FORM, SETTINGS, 3)
    random = make_random(3, "vae", 0)
    rows = torch.randint(20, (SETTINGS.batch,), generator=random)
    tokens = transpose(torch.as_tensor(melodies(20)).long()[rows], FORM, 5, 6, random)
    mean, deviation = trainer.vae.encode(tokens)
    z = mean + deviation * torch.randn(mean.shape, generator=random)
    probabilities = torch.softmax(trainer.vae.decode(z), -1)
    likelihood = 0.0
    for row in range(SETTINGS.batch):
        for step in range(FORM.steps):
            likelihood += probabilities[row, step, tokens[row, step]].log().item()
    kl = kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).sum(-1).mean()
    report = trainer.update()
    assert float(report["reconstruction"]) == pytest.approx(-likelihood / SETTINGS.batch, rel=1e-4)
    assert report["kl"].item() == pytest.approx(kl.item(), rel=1e-4)


@pytest.mark.slow
def test_one_batch_can_be_learned_by_heart() -> None:
    tokens = melodies(12)
    settings = VAESettings(
        latent_dim=16, hidden=64, embedding=16, beta=0.01, steps=400, batch=24,
        transpose_down=0, transpose_up=0,
    )  # fmt: skip
    trainer = VAETrainer(tokens, FORM, settings, 0)
    list(train(trainer, 400))
    assert report_reconstruction(trainer.vae, tokens)["exact_segments"] == 1.0


def test_sigma_bar_is_the_mean_posterior_deviation() -> None:
    vae, tokens = small(), melodies(30)
    assert vae.sigma_bar.tolist() == [1.0] * 4
    vae.measure_sigma_bar(tokens)
    with torch.no_grad():
        each = [vae.encode(torch.as_tensor(row[None]))[1][0] for row in tokens]
    torch.testing.assert_close(vae.sigma_bar, torch.stack(each).mean(0))
    assert "sigma_bar" in vae.state_dict()


def test_chunks_change_nothing() -> None:
    vae, tokens = small(), melodies(5000)
    mean, _ = vae.posteriors(tokens)
    with torch.no_grad():
        torch.testing.assert_close(
            mean[4090:4100], vae.encode(torch.as_tensor(tokens[4090:4100]))[0]
        )
    assert np.array_equal(vae.decode_tokens(mean)[4090:4100], vae.decode_tokens(mean[4090:4100]))
