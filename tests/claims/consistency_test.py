"""What labelled data lead to: p+ for RDRO at the rate 1/sqrt(N), another policy for DPO and KTO.

Tables of logits on enumerable responses, fitted with the shipped losses
(`tests.oracles.tabular`); the longer version of each claim is benchmarks/consistency.py.
"""

from functools import partial

import jax
import numpy as np
import pytest
import scipy.stats

from alignjax.losses import ddro, dpo, kto, rdro
from alignjax.world import sources as world
from tests.oracles import tabular
from tests.oracles.tabular import labelled_rows, labelled_weights, minimise, total_variation

CYCLIC = tabular.preferences(temperature=1.0, cycle=2.0)
P, M = CYCLIC.preferred, CYCLIC.rejected
RDRO = partial(rdro.loss, desirable_fraction=0.5)
SIZES = (1_000, 10_000, 100_000)
SEEDS = 8
STEPS = 600  # enough: with all of p+ and p- as weights the distance is below 1e-9


def trained(loss, rows, weight, log_ref=None, baseline=None):
    """``[S, X, n]`` log-probabilities after training from the mixture, or another reference."""
    log_ref = np.log(CYCLIC.q) if log_ref is None else log_ref
    return minimise(loss, rows, np.asarray(weight), log_ref, baseline, steps=STEPS)[0]


def tv(*how, **more):
    """``[S]`` distances to p+."""
    return total_variation(trained(*how, **more), P)


@pytest.fixture(scope="module")
def by_rdro():
    """What RDRO makes of samples of each size, and of three data sets with other references."""
    with jax.enable_x64(True):
        weights = [tabular.sample(CYCLIC.pairs, size, SEEDS)[0] for size in SIZES]
        counts = weights[1][0].reshape(2, *P.shape) + 1e-9
        everything = labelled_weights(P, M, 0.5)
        references = np.stack([CYCLIC.q, P, counts.sum(axis=0) / counts.sum(axis=(0, 2))[:, None]])
        found = trained(
            RDRO,
            labelled_rows(),
            np.concatenate([*weights, [everything, everything, weights[1][0]]]),
            np.log(np.concatenate([np.tile(CYCLIC.q, (len(SIZES) * SEEDS, 1, 1)), references])),
        )
    mixture, preferred_only, same_rows = found[-3:]
    return {
        "tv": total_variation(found[:-3], P).reshape(len(SIZES), SEEDS),
        "everything": total_variation(mixture, P),
        "preferred only": total_variation(preferred_only, P),
        "same rows": np.exp(same_rows),
        "imitated": counts[0] / counts[0].sum(axis=1, keepdims=True),
    }


def test_the_distance_to_p_plus_falls_with_the_square_root_of_the_sample(by_rdro):
    slope = np.polyfit(np.log(SIZES), np.log(by_rdro["tv"]), 1)[0]
    half = scipy.stats.t.ppf(0.975, SEEDS - 1) * slope.std(ddof=1) / np.sqrt(SEEDS)
    assert half < 0.05
    assert abs(slope.mean() + 0.5) < max(half, 0.03)  # 0.03: at N = 1,000 TV is not small yet
    assert by_rdro["everything"] < 1e-9
    assert by_rdro["tv"][-1].max() < 0.1 * total_variation(np.log(CYCLIC.q), P)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_dpo_stays_away_from_p_plus_under_cyclic_preferences(by_rdro, beta):
    """At the usual beta, and at the one that is best in hindsight, which nobody can know."""
    pairs = tabular.sample(CYCLIC.pairs, SIZES[-1], 2)[1]
    found = tv(partial(dpo.loss, beta=beta), tabular.pair_rows(), pairs)
    assert found.min() > 2 * by_rdro["tv"][-1].max()


@pytest.mark.parametrize("beta", [0.1, 8.0])
def test_kto_stays_away_from_p_plus_under_cyclic_preferences(by_rdro, beta):
    labelled = tabular.sample(CYCLIC.pairs, SIZES[-1], 2)[0]
    loss = partial(kto.loss, beta=beta)
    found = tv(loss, tabular.mismatched_rows(), labelled, baseline=kto.baseline)
    assert found.min() > 2 * by_rdro["tv"][-1].max()
    assert found.min() > total_variation(np.log(CYCLIC.q), P)  # farther than where it began


@pytest.mark.slow
def test_in_the_embedded_world_rdro_ends_at_p_plus_and_kto_does_not():
    """All 2,160 responses to a prompt of each risk, cyclic preferences, a million labels."""
    prompts = [
        next(p for p in map(partial(world.prompt_text, 0), range(99)) if end in p)
        for end in ("beginner", "boss", "stole")
    ]
    setting = dict(alpha=0.5, temperature=0.05, cycle=2.0)
    marginals = [world.pair_marginals(world.DEFAULT_WORLD, p, **setting) for p in prompts]
    p, m = np.exp(np.array(marginals)).swapaxes(0, 1)
    everything = labelled_weights(p, m, 0.5) / len(prompts)
    sample = np.random.default_rng(0).multinomial(1_000_000, everything / everything.sum())
    log_ref = np.log((p + m) / 2)
    weight = np.stack([everything, sample])

    def distance(loss, rows, baseline=None):
        return total_variation(trained(loss, rows, weight, log_ref, baseline), p)

    everything, sampled = distance(RDRO, labelled_rows(p.shape))
    assert everything < 1e-4
    assert distance(kto.loss, tabular.mismatched_rows(p.shape), kto.baseline).min() > 2 * sampled


def unbalanced(**reduction):
    """TV at infinitely many rows, a fifth of them and of the reference from p+."""
    loss = partial(rdro.loss, desirable_fraction=0.2, **reduction)
    weight = labelled_weights(P, M, 0.2)[None]
    return tv(loss, labelled_rows(), weight, np.log(0.2 * P + 0.8 * M))[0]


def test_class_means_lead_to_p_plus_where_the_classes_are_unbalanced_and_others_do_not():
    assert unbalanced() < 1e-6
    assert unbalanced(reduction="batch_mean") > 0.1


def test_ddro_leads_to_p_plus_and_its_transform_does_not():
    weight = labelled_weights(P, M, 0.5)[None]
    assert tv(partial(ddro.loss, desirable_fraction=0.5), labelled_rows(), weight)[0] < 1e-6
    transformed = partial(ddro.loss_log_sigmoid, desirable_fraction=0.5)
    assert tv(transformed, labelled_rows(), weight)[0] > 0.1


def test_a_reference_that_is_not_the_mixture_is_not_corrected(by_rdro):
    """The learned ratio multiplies whatever the reference is: this one began at p+ and left it."""
    assert by_rdro["preferred only"] > 0.05


def test_with_a_reference_fitted_on_the_same_rows_it_imitates_the_preferred_ones(by_rdro):
    """The ratio of two empirical distributions, times the one below, is the one above."""
    np.testing.assert_allclose(by_rdro["same rows"], by_rdro["imitated"], atol=1e-5)
