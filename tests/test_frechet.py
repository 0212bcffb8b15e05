"""The Fréchet distance of pairs from real neighbours, against slow and closed forms."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from cf_core.training import limit_threads
from evaluation import frechet
from evaluation.frechet import Gaussian, RealGaussian


def drawn(rows: int, columns: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, columns)) @ random.normal(size=(columns, columns))


def test_the_covariance_is_shrunk_as_ledoit_and_wolf_do() -> None:
    points = drawn(30, 4, 0)
    centred = points - points.mean(0)
    sample = sum(np.outer(x, x) for x in centred) / 30
    scale = np.trace(sample) / 4
    target = scale * np.eye(4)
    apart = np.sum((sample - target) ** 2)
    error = sum(np.sum((np.outer(x, x) - sample) ** 2) for x in centred) / 30**2
    assert 0 < error < apart
    expected = error / apart * target + (1 - error / apart) * sample
    found = Gaussian.fit(torch.from_numpy(points))
    np.testing.assert_allclose(found.covariance, expected)
    np.testing.assert_allclose(found.mean, points.mean(0))


def test_few_points_have_a_covariance_of_full_rank_and_equal_ones_none() -> None:
    few = Gaussian.fit(torch.from_numpy(drawn(3, 8, 0)))
    assert torch.linalg.eigvalsh(few.covariance).min() > 0
    equal = Gaussian.fit(torch.ones(5, 3, dtype=torch.float64))
    assert not equal.covariance.any()
    assert equal.distance(equal) == 0


def test_the_distance_is_that_of_dowson_and_landau() -> None:
    one, other = (
        Gaussian(torch.from_numpy(drawn(1, 5, seed)[0]), torch.from_numpy(np.cov(points.T)))
        for seed, points in ((0, drawn(20, 5, 2)), (1, drawn(20, 5, 3)))
    )
    covariances = one.covariance.numpy(), other.covariance.numpy()
    expected = ((one.mean - other.mean) ** 2).sum() + np.trace(
        covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert one.distance(other) == pytest.approx(float(expected))
    assert other.distance(one) == pytest.approx(float(expected))
    assert one.distance(one) == pytest.approx(0, abs=1e-6)


def test_it_is_measured_in_deviations_of_the_leading_components(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two features that go together are one component; one that is constant is none."""
    monkeypatch.setattr(frechet, "COMPONENTS", 1)
    random = np.random.default_rng(0)
    shared, alone = random.normal(size=(2, 400))
    real = np.stack((100 * shared, shared, alone, np.full(400, 7.0)), 1)
    fitted = RealGaussian.fit(torch.from_numpy(real))
    assert fitted.directions.shape == (4, 1)
    assert fitted.distance(torch.from_numpy(real)) == pytest.approx(0, abs=1e-9)
    # One deviation of both features is √2 of the component, whose variance is 2.
    moved = real + np.array([100 * shared.std(), shared.std(), 0, 0])
    assert fitted.distance(torch.from_numpy(moved)) == pytest.approx(2, rel=0.02)
    monkeypatch.setattr(frechet, "COMPONENTS", 4)
    assert RealGaussian.fit(torch.from_numpy(real)).directions.shape == (4, 2)


def test_the_bits_are_the_same_with_any_number_of_threads() -> None:
    real, outputs = torch.from_numpy(drawn(700, 90, 0)), torch.from_numpy(drawn(500, 90, 1))
    found = set[float]()
    for threads in (1, 2):
        with limit_threads(threads):
            found.add(RealGaussian.fit(real).distance(outputs))
    assert len(found) == 1
