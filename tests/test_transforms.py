"""Latent search against a literal re-derivation, and what it may know."""

from itertools import pairwise

import torch

from cf_core.fusion import Generator
from cf_core.losses import Pair
from cf_core.nets import initialise
from cf_core.seeding import generator
from evaluation.classifier import ClassifierSettings, SearchClassifier
from evaluation.transforms import fusion, identity, latent_search

Z = 3


def classifier() -> SearchClassifier:
    made = SearchClassifier(Z, ClassifierSettings(hidden=8))
    initialise(made, generator(0, "classifier"))
    return made


def pair(count: int = 6) -> Pair:
    left, right = torch.randn(2, count, Z, generator=generator(0, "pair"))
    return left, right


def test_latent_search_pair_by_pair() -> None:
    judge, (left, right) = classifier(), pair()
    steps = list(latent_search(judge, (left, right), 0.5, [2, 9], generator(0, "lp")))
    random = generator(0, "lp")
    noise = [torch.randn(6, 2 * Z, generator=random) for _ in range(9)]
    for row in range(6):
        z = torch.cat((left[row], right[row]))
        with torch.no_grad():
            score = judge((z[None, :Z], z[None, Z:]))
            for count in range(9):
                proposal = z + 0.5 * noise[count][row]
                proposed = judge((proposal[None, :Z], proposal[None, Z:]))
                if proposed > score:
                    z, score = proposal, proposed
                for step in steps:
                    if step.iteration == count + 1:
                        torch.testing.assert_close(torch.cat(step.outputs, 1)[row], z)
    assert [step.iteration for step in steps] == [2, 9]
    assert [step.classifier_calls for step in steps] == [3, 10]


def test_latent_search_never_falls_and_keeps_what_it_yielded() -> None:
    judge, start = classifier(), pair(50)
    steps = list(latent_search(judge, start, 0.3, [1, 5, 40], generator(0, "lp")))
    with torch.no_grad():
        scores = [judge(start), *(judge(step.outputs) for step in steps)]
    for before, after in pairwise(scores):
        assert (after >= before).all()
    assert (scores[-1] > scores[0]).float().mean() > 0.9


def test_inputs_are_left_as_they_were() -> None:
    start = pair()
    kept = (start[0].clone(), start[1].clone())
    list(latent_search(classifier(), start, 0.3, [3], generator(0, "lp")))
    made = Generator(Z, 2, 8, 2)
    list(fusion(made, start, torch.rand(6, 2), [1, 2]))
    (step,) = identity(start)
    assert step.iteration == 0
    for half in (0, 1):
        assert torch.equal(start[half], kept[half])
        assert step.outputs[half] is start[half]
