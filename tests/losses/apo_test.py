"""The game's losses against NumPy in float64: weights of mixed rows, samples that are missing."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.losses import apo, bradley_terry, plackett_luce, sft
from alignjax.testing import loss_inputs
from tests.losses import checks, golden

B, K = 8, 4  # a row has a golden response and 3 samples, or 2 to 4 responses a human ranked
ADVERSARIAL = np.array([True, False, False, True, True, False, True, False])
PAIR, SAMPLE = 0.7, 0.3


def mixed(seed=0):
    """Rewards, lengths (0: absent) and scores of both kinds of rows, the golden one anywhere."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 9, (B, K))
    scores = rng.normal(size=(B, K))
    golden_at = rng.integers(0, K, B)
    scores[ADVERSARIAL] = np.arange(K) == golden_at[ADVERSARIAL, None]
    length[3, (golden_at[3] + 1) % K] = 0  # one sample fewer
    length[5, :2] = 0  # a pair
    return rng.normal(0, 3, (B, K)), length, scores


def formula(x, *, diff):
    """One row's loss, and its kind as a metric."""
    pairs = [
        (w, j)
        for w in range(K)
        for j in range(K)
        if x.length[w] and x.length[j] and x.scores[w] > x.scores[j]
    ]
    gap = np.array([x.policy[w] - x.policy[j] for w, j in pairs])
    terms = -gap if x.adversarial and diff else np.logaddexp(0, -gap)
    weight = SAMPLE if x.adversarial else PAIR
    return weight * terms.mean(), {"adversarial": x.adversarial}


@pytest.mark.parametrize("diff", [False, True])
def test_reward_losses_and_gradients_of_mixed_rows(diff):
    reward, length, scores = mixed()
    loss = functools.partial(
        apo.reward_loss_diff if diff else apo.reward_loss, pair_weight=PAIR, sample_weight=SAMPLE
    )
    case = dict(policy=reward, reference=None, length=length, scores=scores)
    case["adversarial"] = ADVERSARIAL
    golden.check(checks.of_scores(loss), functools.partial(formula, diff=diff), case)


@functools.cache
def weighted(**weights):
    return checks.of_scores(functools.partial(apo.reward_loss, **weights))


def losses_of(reward, length, scores, adversarial, **weights):
    case = loss_inputs(reward, length=length, scores=scores, adversarial=adversarial)
    return np.asarray(checks.compiled(weighted(**weights))(*case).losses)


def test_a_rows_weight_does_not_depend_on_the_rows_beside_it():
    """So means over batches of any mixture add up to the mean over the data."""
    case = mixed()
    order = np.argsort(ADVERSARIAL, kind="stable")
    whole = losses_of(*case, ADVERSARIAL)
    apart = losses_of(*(x[order] for x in case), ADVERSARIAL[order])
    np.testing.assert_array_equal(apart, whole[order])
    half = np.concatenate([losses_of(*(x[i::2] for x in case), ADVERSARIAL[i::2]) for i in (0, 1)])
    np.testing.assert_allclose(half.mean(), whole.mean(), rtol=1e-6)

    def divided_among_its_kind(rows):  # what normalising inside the batch would do
        weight = np.where(ADVERSARIAL[rows], 0.1, 1.0)
        bare = losses_of(*(x[rows] for x in case), ADVERSARIAL[rows], sample_weight=1.0)
        return np.average(bare, weights=weight)

    halves = [divided_among_its_kind(np.arange(i, B, 2)) for i in (0, 1)]
    assert abs(np.mean(halves) - divided_among_its_kind(np.arange(B))) > 1e-3


def test_ablations_are_weights():
    case = mixed()
    gail, ab = losses_of(*case, ADVERSARIAL, pair_weight=0.0), losses_of(*case, None)
    assert (gail[~ADVERSARIAL] == 0).all()
    assert (gail[ADVERSARIAL] > 0).all()
    assert (losses_of(*case, ADVERSARIAL, sample_weight=0.0)[ADVERSARIAL] == 0).all()
    logps, batch = loss_inputs(case[0], length=case[1], scores=case[2])
    np.testing.assert_array_equal(ab, bradley_terry.reward_loss(logps.policy, batch)[0])


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("diff", [False, True])
def test_a_row_weighs_what_the_authors_rows_of_its_samples_do(diff, k):
    """They have a row for each of the k samples, golden against it, of weight 0.1 / k.

    Humans' pairs weigh 1 (rm_kl_coeff) there and here.
    """
    reward = np.random.default_rng(k).normal(0, 3, (3, 1 + k))
    loss = checks.of_scores(apo.reward_loss_diff if diff else apo.reward_loss)

    def authors(reward):
        gap = reward[:, :1] - reward[:, 1:]
        rows = 0.1 / k * (-gap if diff else np.logaddexp(0, -gap))
        slope = 0.1 / k * (-1 if diff else -1 / (1 + np.exp(gap))) * np.ones_like(gap)
        return rows.sum(axis=1), np.hstack([slope.sum(axis=1, keepdims=True), -slope])

    scores = np.arange(1 + k) == np.zeros((3, 1))
    with jax.enable_x64(True):
        found = checks.compiled(loss)(*loss_inputs(reward, scores=scores, adversarial=[True] * 3))
        pair = checks.compiled(loss)(*loss_inputs(reward[:, :2], scores=scores[:, :2]))
    losses, slopes = authors(reward)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(found.gradient) * 3, slopes, rtol=1e-9)  # of the mean
    human = np.logaddexp(0, reward[:, 1] - reward[:, 0])
    np.testing.assert_allclose(pair.losses, human, rtol=1e-9)


@pytest.mark.parametrize("loss", [apo.reward_loss, apo.reward_loss_diff])
def test_without_scores_index_0_is_golden(loss):
    reward = jnp.array([[1.0, 3.0], [1.0, 3.0]])
    kinds = [True, False]
    _, bare = loss_inputs(reward, adversarial=kinds)
    _, scored = loss_inputs(reward, scores=[[1, 0], [1, 0]], adversarial=kinds)
    chex.assert_trees_all_equal(loss(reward, bare), loss(reward, scored))
    with pytest.raises(ValueError, match=r"wanted `scores` to order K=3"):
        loss(jnp.zeros((1, 3)), loss_inputs(np.zeros((1, 3)))[1])


# The policy

BETA = 0.3
LOSS = functools.partial(apo.loss, beta=BETA)


def test_policy_gradient_is_each_samples_lead_over_the_others():
    case = golden.rows(K)
    case["length"][2, 1] = 0
    case["scores"][4, 0] = np.nan
    case["length"][6, 1:] = 0  # a single sample: nothing to compare it with
    with jax.enable_x64(True):
        found = checks.compiled(LOSS)(*loss_inputs(**case))
    value, gradient = np.zeros(B), np.zeros((B, K))
    for b in range(B):
        some = [k for k in range(K) if case["length"][b, k] and np.isfinite(case["scores"][b, k])]
        reward = {
            k: case["scores"][b, k] - BETA * (case["policy"][b, k] - case["reference"][b, k])
            for k in some
        }
        value[b] = -np.mean(list(reward.values()))
        for k in some:
            others = [reward[j] for j in some if j != k]
            if others:
                gradient[b, k] = -(reward[k] - np.mean(others)) / len(some)
    np.testing.assert_allclose(found.losses, value, rtol=1e-9)
    np.testing.assert_allclose(np.asarray(found.gradient) * B, gradient, rtol=1e-9, atol=1e-12)
    assert (gradient[6] == 0).all()
    ratio = (case["policy"] - case["reference"])[0]
    np.testing.assert_allclose(found.metrics["kl"][0], ratio.mean(), rtol=1e-9)
    np.testing.assert_allclose(found.metrics["scores"][0], case["scores"][0].mean(), rtol=1e-9)


def test_a_reward_that_all_samples_share_changes_no_gradient():
    case = golden.rows(K)
    with jax.enable_x64(True):
        first = checks.compiled(LOSS)(*loss_inputs(**case)).gradient
        case["scores"] = case["scores"] + np.arange(B)[:, None]
        second = checks.compiled(LOSS)(*loss_inputs(**case)).gradient
    np.testing.assert_allclose(first, second, rtol=1e-9, atol=1e-12)


def test_policy_gradient_needs_a_reference_and_several_samples():
    with pytest.raises(ValueError, match=r"reference\.mode"):
        apo.loss(*loss_inputs(np.zeros((1, 2)), scores=[[1, 0]]))
    with pytest.raises(ValueError, match="K=1"):
        apo.loss(*loss_inputs([[0.0]], [[0.0]], scores=[[1.0]]))


def test_rejection_sampling_imitates_the_best_sample():
    case = golden.rows(K)
    case["length"][1, case["scores"][1].argmax()] = 0  # an empty sample is not chosen
    case["scores"][2, 0] = np.nan
    case["length"][3] = 0
    logps, batch = loss_inputs(**case)
    drawn = apo.select_best(jax.random.key(0), batch.replace(ref_logps=logps.policy))
    usable = np.where((case["length"] > 0) & np.isfinite(case["scores"]), case["scores"], -np.inf)
    rows = np.arange(B) != 3
    best = case["policy"][np.arange(B), usable.argmax(axis=1)]
    np.testing.assert_allclose(drawn.ref_logps[rows, 0], best[rows], rtol=1e-6)
    np.testing.assert_array_equal(drawn.weight, rows)
    kept = logps.replace(policy=drawn.ref_logps, length=drawn.response_length)
    np.testing.assert_allclose(sft.loss(kept, drawn)[0][rows], -best[rows], rtol=1e-6)
    with pytest.raises(ValueError, match="wanted `scores`"):
        apo.select_best(jax.random.key(0), loss_inputs([[0.0, 0.0]])[1])


def test_select_best_keeps_the_first_of_ties():
    _, batch = loss_inputs([[0.0] * 3], length=[[5, 6, 7]], scores=[[1.0, 2.0, 2.0]])
    drawn = apo.select_best(jax.random.key(0), batch)
    assert drawn.response_length.tolist() == [[6]]
    assert plackett_luce.best_and_negatives(batch)[0].tolist() == [1]
