"""Rankings against NumPy in float64: full, best-only, with ties, absent and unscored responses."""

import chex
import numpy as np
import pytest
from absl.testing import parameterized

from alignjax.losses import dpo, plackett_luce
from alignjax.testing import loss_inputs
from tests.losses import checks


def ranking(reward, scores):
    """-log of the probability that Plackett-Luce gives to the order of decreasing scores."""
    order = np.argsort(-scores)
    r = reward[order]
    return sum(np.log(np.exp(r[j:]).sum()) - r[j] for j in range(len(r)))


def lists(k=5, b=16, seed=0):
    rng = np.random.default_rng(seed)
    policy, reference = rng.uniform(-30, 0, (2, b, k))
    return policy, reference, rng.normal(size=(b, k))


class Golden(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_full_ranking(self):
        policy, reference, scores = lists()
        losses, _ = self.variant(plackett_luce.loss)(*loss_inputs(policy, reference, scores=scores))
        reward = 0.1 * (policy - reference)
        expected = [ranking(r, s) for r, s in zip(reward, scores, strict=True)]
        np.testing.assert_allclose(losses, expected, rtol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_best_only_and_metrics(self):
        policy, reference, scores = lists()
        losses, metrics = self.variant(plackett_luce.loss_top1)(
            *loss_inputs(policy, reference, scores=scores)
        )
        for b in range(len(policy)):
            reward = 0.1 * (policy[b] - reference[b])
            best = int(np.argmax(scores[b]))
            rest = np.delete(np.arange(5), best)
            np.testing.assert_allclose(
                losses[b], np.log(np.exp(reward).sum()) - reward[best], rtol=1e-5
            )
            wanted = {
                "rewards/chosen": reward[best],
                "rewards/rejected": reward[rest].mean(),
                "rewards/margins": reward[best] - reward[rest].mean(),
                "rewards/accuracies": (reward[best] > reward[rest]).mean(),
                "logps/chosen": policy[b, best],
                "logps/rejected": policy[b, rest].mean(),
            }
            assert metrics.keys() == wanted.keys()
            for name, value in wanted.items():
                np.testing.assert_allclose(metrics[name][b], value, rtol=1e-4, atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    @parameterized.named_parameters(("all", plackett_luce.loss), ("top1", plackett_luce.loss_top1))
    def test_two_responses_are_dpo(self, loss):
        policy, reference, scores = lists(k=2)
        order = np.argsort(-scores, axis=1)
        pair = (np.take_along_axis(x, order, 1) for x in (policy, reference))
        np.testing.assert_allclose(
            self.variant(loss)(*loss_inputs(policy, reference, scores=scores))[0],
            dpo.loss(*loss_inputs(*pair))[0],
            rtol=1e-5,
            atol=1e-6,
        )


BOTH = pytest.mark.parametrize("loss", [plackett_luce.loss, plackett_luce.loss_top1])


@BOTH
def test_the_order_in_the_batch_means_nothing(loss):
    policy, reference, scores = lists()
    order = np.random.default_rng(1).permuted(np.tile(np.arange(5), (16, 1)), axis=1)
    moved = (np.take_along_axis(x, order, axis=1) for x in (policy, reference))
    chex.assert_trees_all_close(
        loss(*loss_inputs(*moved, scores=np.take_along_axis(scores, order, axis=1))),
        loss(*loss_inputs(policy, reference, scores=scores)),
        rtol=1e-5,
    )


def test_tied_responses_are_chosen_from_themselves_and_the_lower_ones():
    reward = np.array([0.3, -0.2, 0.9, 0.1])
    scores = np.array([2.0, 1.0, 2.0, 1.0])
    losses, _ = plackett_luce.loss(
        *loss_inputs([reward - 5], [[-5.0] * 4], scores=[scores]), beta=1.0
    )
    e = np.exp(reward)
    low = e[1] + e[3]
    expected = -np.log(e[0] / (e[0] + low)) - np.log(e[2] / (e[2] + low))  # nothing below 1 and 3
    np.testing.assert_allclose(losses[0], expected, rtol=1e-5)


def test_a_response_tied_with_the_best_is_no_negative():
    case = loss_inputs([[-1.0, -2.0, -3.0]], [[-2.0] * 3], scores=[[1.0, 1.0, 0.0]])
    losses, metrics = plackett_luce.loss_top1(*case, beta=1.0)
    np.testing.assert_allclose(losses[0], np.log1p(np.exp(-1.0 - 1.0)), rtol=1e-5)
    np.testing.assert_allclose(metrics["rewards/rejected"][0], -1.0, rtol=1e-6)


@BOTH
def test_a_list_of_ties_teaches_nothing(loss):
    logps, batch = loss_inputs([[-1.0, -2.0]], [[-2.0, -1.0]], scores=[[1.0, 1.0]])
    result = checks.compiled(loss)(logps, batch)
    np.testing.assert_array_equal(result.losses, 0.0)
    np.testing.assert_array_equal(result.gradient, 0.0)


@BOTH
@pytest.mark.parametrize("fault", ["absent", "nan", "inf"])
def test_what_takes_no_part_is_as_if_it_were_not_there(loss, fault):
    policy, reference, scores = lists(k=4)
    length = np.ones((16, 4), int)
    if fault == "absent":
        length[:, 3] = 0
        policy[:, 3] = reference[:, 3] = 0.0
        scores[:, 3] = 99.0
    else:
        scores[:, 3] = float(fault)
    with_fault = loss(*loss_inputs(policy, reference, length=length, scores=scores))
    short = loss(*loss_inputs(policy[:, :3], reference[:, :3], scores=scores[:, :3]))
    chex.assert_trees_all_close(with_fault, short, rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "needs `scores`"),
        (np.zeros((2, 3, 4)), r"these data have 4 \(scores \[B, K, M\]\): combine"),
    ],
)
def test_scores_of_another_shape_are_refused_with_advice(loss, scores, message):
    with pytest.raises(ValueError, match=message):
        loss(*loss_inputs(np.zeros((2, 3)), np.zeros((2, 3)), scores=scores))


@BOTH
def test_single_responses_are_refused_with_advice(loss):
    with pytest.raises(ValueError, match="at least 2 per prompt"):
        loss(*loss_inputs(np.zeros((2, 1)), np.zeros((2, 1)), scores=np.zeros((2, 1))))
