"""What losses have in common: who takes part, what is compared with nothing, what is refused."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alignjax.losses import (
    alphapo,
    anchored,
    aot,
    bradley_terry,
    cpo,
    ddo_rm,
    discopop,
    dpo,
    exo,
    f_dpo,
    hps,
    ipo,
    kto,
    lipo,
    mixed,
    modpo,
    nca,
    orpo,
    plackett_luce,
    pro,
    rdpo,
    robust_dpo,
    robust_plackett_luce,
    rrhf,
    sft,
    simpo,
    slic,
    sppo,
    tpo,
)
from alignjax.testing import loss_inputs
from alignjax.training.microbatches import weighted_sums
from alignjax.types import check_shapes, take_responses
from tests.losses import checks, golden

COMPARE = [
    bradley_terry.loss,
    hps.loss_full,
    hps.loss_two_valid,
    ipo.loss_list,
    lipo.loss,
    plackett_luce.loss,
    plackett_luce.loss_top1,
    robust_plackett_luce.loss,
]
DIVIDE = [
    ddo_rm.loss,
    exo.loss_list,
    nca.loss_list,
    nca.loss_info,
    sppo.loss_list,
]  # among the responses
IMITATE = [pro.loss, rrhf.loss]  # the best response as well
REWARD_LOSS = checks.of_scores(bradley_terry.reward_loss)


def name_of(loss):
    return f"{loss.__module__.rpartition('.')[2]}.{loss.__name__}"


def of(losses):
    return pytest.mark.parametrize("loss", losses, ids=name_of)


# Who takes part


@of(COMPARE + DIVIDE + IMITATE)
@pytest.mark.parametrize("fault", ["absent", "nan", "inf"])
def test_a_response_without_length_or_score_is_as_if_it_were_not_there(loss, fault):
    case = golden.rows(4)
    case["scores"][:, 3] = 99.0 if fault == "absent" else float(fault)
    case["length"][:, 3] *= fault != "absent"
    short = loss_inputs(**{name: x[:, :3] for name, x in case.items()})
    found, wanted = checks.compiled(loss)(*loss_inputs(**case)), checks.compiled(loss)(*short)
    chex.assert_trees_all_close(found[:3], wanted[:3], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.gradient[:, 3], 0.0)


def teaches_nothing(loss, case):
    result = checks.compiled(loss)(*loss_inputs(**case))
    np.testing.assert_array_equal(result.losses, 0.0)
    np.testing.assert_array_equal(result.gradient, 0.0)


@of(COMPARE + DIVIDE)
def test_a_response_alone_teaches_nothing(loss):
    case = golden.rows(3)
    case["length"][:, 1] = 0
    case["scores"][:, 2] = np.nan
    teaches_nothing(loss, case)


@of(COMPARE)
def test_a_list_of_ties_teaches_nothing(loss):
    teaches_nothing(loss, golden.rows(3, scores=np.ones((8, 3))))


@of(COMPARE + DIVIDE + IMITATE)
def test_the_order_in_the_batch_means_nothing(loss):
    case = golden.rows(5)
    order = np.random.default_rng(1).permuted(np.tile(np.arange(5), (8, 1)), axis=1)
    moved = {name: np.take_along_axis(x, order, axis=1) for name, x in case.items()}
    chex.assert_trees_all_close(loss(*loss_inputs(**moved)), loss(*loss_inputs(**case)), rtol=1e-4)


def test_a_score_that_is_not_a_number_stays_in_its_row():
    case = golden.rows(4)
    clean = checks.compiled(hps.loss_full)(*loss_inputs(**case))
    case["scores"][3, 2] = np.nan
    faulty = checks.compiled(hps.loss_full)(*loss_inputs(**case))
    chex.assert_tree_all_finite(faulty)
    others = np.arange(8) != 3
    np.testing.assert_array_equal(faulty.losses[others], clean.losses[others])


@of(
    [
        alphapo.loss,
        cpo.loss,
        cpo.loss_simpo,
        orpo.loss,
        pro.loss,
        rrhf.loss,
        sft.loss,
        simpo.loss,
        slic.loss,
    ]
)
def test_no_reference_is_needed_and_none_is_read(loss):
    case = golden.rows(2)
    with_reference = loss(*loss_inputs(**case))
    chex.assert_trees_all_equal(loss(*loss_inputs(**case | {"reference": None})), with_reference)


@pytest.mark.parametrize(("loss", "value"), [(cpo.loss, 1.5), (orpo.loss, 1.5), (slic.loss, 0.3)])
def test_a_pair_without_its_rejected_response_is_imitated_only(loss, value):
    losses, _ = loss(*loss_inputs([[-3.0, 0.0]], length=[[2, 0]]))
    np.testing.assert_allclose(losses, [value], rtol=1e-6)


# Ties


@pytest.mark.parametrize(
    ("loss", "policy", "scores", "value"),
    [  # each of the two best is compared with what is below it, and not with the other
        (
            functools.partial(plackett_luce.loss, beta=1.0),
            [0.3, -0.2, 0.9, 0.1],
            [2.0, 1.0, 2.0, 1.0],
            np.log1p(np.exp(-0.2 - 0.3) + np.exp(0.1 - 0.3))
            + np.log1p(np.exp(-0.2 - 0.9) + np.exp(0.1 - 0.9)),
        ),
        (
            functools.partial(plackett_luce.loss_top1, beta=1.0),
            [1.0, 0.0, -1.0],
            [1.0, 1.0, 0.0],
            np.log1p(np.exp(-2.0)),
        ),
        (
            functools.partial(hps.loss_two_valid, beta=1.0),
            [1.0, 0.0, -1.0],
            [1.0, 1.0, 0.0],
            np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0)),
        ),
        (
            functools.partial(pro.loss, nll_weight=0.5),
            [-1.0, -3.0, -2.5],
            [1.0, 1.0, 0.0],
            np.log1p(np.exp(-2.5 + 1)) + np.log1p(np.exp(-2.5 + 3)) + 0.5 * 4 * 2.0,
        ),
        (rrhf.loss, [-1.0, -3.0, -2.5], [1.0, 1.0, 0.0], (-2.5 + 3.0) + 2.0),
    ],
    ids=["ranking", "top 1", "hps", "pro", "rrhf"],
)
def test_tied_responses_are_not_compared_with_each_other(loss, policy, scores, value):
    losses, _ = loss(*loss_inputs([policy], [[0.0] * len(policy)], scores=[scores]))
    np.testing.assert_allclose(losses, [value], rtol=1e-5)


def test_tied_responses_share_the_imitation():
    result = checks.compiled(rrhf.loss)(*loss_inputs([[-1.0, -3.0, -2.5]], scores=[[1.0, 1.0, 0]]))
    np.testing.assert_allclose(result.gradient, [[-0.5, -1.5, 1.0]], rtol=1e-6)


def test_lipo_ranks_the_lower_score_first_where_rewards_are_equal():
    """At policy = reference all s are 0: ranks 4, 3 and, for the two tied ones, 1.5 each."""
    psi = np.array([1.0, 0.5, 0.2, 0.2])
    gain, discount = 2**psi, 1 / np.log(1 + np.array([4.0, 3.0, 1.5, 1.5]))
    expected = sum(
        (gain[i] - gain[j]) * abs(discount[i] - discount[j]) * np.log(2)
        for i in range(4)
        for j in range(4)
        if psi[i] > psi[j]
    )
    gradients = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        case = loss_inputs(np.full((1, 4), -2.0), np.full((1, 4), -2.0), scores=psi[None, order])
        result = checks.compiled(lipo.loss)(*case)
        np.testing.assert_allclose(result.losses, [expected], rtol=1e-5)
        gradients.append(np.asarray(result.gradient)[0, np.argsort(order)])
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-8)
    assert (np.abs(gradients[0]) > 1e-3).all()


# One loss as another


def equals(loss, other, case, **tolerance):
    found, wanted = loss(*loss_inputs(**case))[0], other(*loss_inputs(**case))[0]
    np.testing.assert_allclose(found, wanted, **{"rtol": 1e-4, "atol": 1e-5, **tolerance})


RDPO = functools.partial(
    rdpo.loss, beta=0.2, implicit=functools.partial(rdpo.implicit, penalty=0.3)
)
CERTAIN = dict(scores=np.tile([1.0, 0.0], (8, 1)))


@pytest.mark.parametrize(
    ("loss", "other", "changes"),
    [
        *(
            (loss, dpo.loss, CERTAIN)
            for loss in (
                bradley_terry.loss,
                hps.loss_full,
                plackett_luce.loss,
                plackett_luce.loss_top1,
                functools.partial(robust_dpo.loss, flip_rate=0.0),
                functools.partial(nca.loss_info, alpha=1e-3),
            )
        ),
        (RDPO, functools.partial(dpo.loss, beta=0.2), dict(length=np.full((8, 2), 7))),
        (ipo.loss_list, ipo.loss, CERTAIN),
        (functools.partial(nca.loss_list, alpha=1e-3), nca.loss, CERTAIN),
        (
            exo.loss_list,
            functools.partial(exo.loss, label_smoothing=0.1),
            dict(scores=np.tile([np.log(0.9 / 0.1), 0.0], (8, 1))),
        ),
        (
            functools.partial(simpo.loss, gamma_beta_ratio=0.0),
            functools.partial(dpo.loss, beta=2.0, implicit=simpo.implicit),
            {},
        ),
        (  # alpha to 0: the reverse KL, and 1: the forward
            functools.partial(dpo.loss, implicit=functools.partial(f_dpo.alpha, alpha=1e-3)),
            dpo.loss,
            dict(policy=golden.rows(2)["reference"] + 0.1 * np.arange(16).reshape(8, 2)),
        ),
        (
            functools.partial(dpo.loss, implicit=functools.partial(f_dpo.alpha, alpha=1.0)),
            functools.partial(dpo.loss, implicit=f_dpo.forward_kl),
            {},
        ),
        (
            functools.partial(mixed.loss, losses=(dpo.loss,), weights=(1.0,)),
            dpo.loss,
            {},
        ),
        (
            functools.partial(ipo.loss, implicit=ipo.implicit_mean),
            ipo.loss_mean,
            {},
        ),
    ],
)
def test_a_pair_is_that_of_another_loss(loss, other, changes):
    equals(loss, other, golden.rows(2, **changes))


@of([bradley_terry.loss, REWARD_LOSS])
def test_without_scores_the_first_of_a_pair_was_chosen(loss):
    scored = loss(*loss_inputs(**golden.rows(2, **CERTAIN)))
    chex.assert_trees_all_equal(loss(*loss_inputs(**golden.rows(2, scores=None))), scored)


def test_lists_that_are_those_of_another_loss():
    case = golden.rows(4)
    equals(functools.partial(nca.loss_info, alpha=1e-4), plackett_luce.loss_top1, case)
    one = functools.partial(hps.loss_full, gamma=0.7)
    equals(functools.partial(hps.loss_two_valid, gamma=0.7, second_weight=0.0), one, case)
    two = functools.partial(hps.loss_two_valid, gamma=0.7)
    assert (two(*loss_inputs(**case))[0] > one(*loss_inputs(**case))[0]).all()
    equals(hps.loss_two_valid, hps.loss_full, golden.rows(2))  # nothing is worse than the second


def test_a_longer_chosen_response_moves_the_policy_less():
    case = golden.rows(2, length=np.full((8, 2), 7))
    equal = RDPO(*loss_inputs(**case))[0]
    case["length"][:, 0] = 9
    assert (RDPO(*loss_inputs(**case))[0] < equal).all()
    case["length"][:, 0] = 5
    assert (RDPO(*loss_inputs(**case))[0] > equal).all()


def test_simpos_reward_under_other_losses():
    """Two lines of a config: a draw of HPS, and its loss over SimPO's reward."""
    case = golden.rows(2, reference=None, drawn_from=np.full(8, 3))
    per_token = 2.0 * case["policy"] / case["length"]
    losses, metrics = hps.loss(*loss_inputs(**case), beta=2.0, implicit=simpo.implicit)
    w, j = per_token.T
    np.testing.assert_allclose(losses, np.log1p(3 * np.exp(j - w)), rtol=1e-4)
    np.testing.assert_allclose(metrics["rewards/margins"], w - j, rtol=1e-4, atol=1e-5)
    w, j = np.take_along_axis(per_token, np.argsort(-case["scores"], axis=1), axis=1).T
    for loss in (plackett_luce.loss, plackett_luce.loss_top1, hps.loss_full):
        losses = loss(*loss_inputs(**case), beta=2.0, implicit=simpo.implicit)[0]
        np.testing.assert_allclose(losses, np.log1p(np.exp(j - w)), rtol=1e-4, atol=1e-6)


def test_anchored_without_pairs_is_kto_without_a_baseline():
    case = golden.rows(2, desirable=np.tile([True, False], (8, 1)), baseline=-1.0)
    weights = dict(beta=0.3, desirable_weight=1.3, undesirable_weight=0.7)
    equals(
        functools.partial(anchored.loss_unpaired, **weights),
        functools.partial(kto.loss, **weights),
        case,
    )


def test_unpaired_transport_compares_ranks_whatever_the_row():
    case = golden.rows(2, b=4)
    ratio = case["policy"] - case["reference"]
    gap = np.sort(ratio[:, 0]) - np.sort(ratio[:, 1])
    losses, _ = aot.loss_unpaired(*loss_inputs(**case), beta=0.2)
    by_rank = np.asarray(losses)[np.argsort(ratio[:, 0])]
    np.testing.assert_allclose(by_rank, np.log1p(np.exp(-0.2 * gap)), rtol=1e-5)


def test_far_below_the_reference_a_forward_kl_still_pulls_back():
    """Beyond 40 nats the exponential is a line: a finite slope, and not 0."""
    slope = jax.vmap(jax.grad(f_dpo.exp))(jnp.array([0.0, 39.0, 41.0, 1e4]))
    np.testing.assert_allclose(slope, np.exp([0.0, 39.0, 40.0, 40.0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("scores", "value"),
    [
        ([0.0, 2.0, 1.0, 0.5], np.log1p(np.exp(-0.3)) + 9.0),  # best 1, second 2, worst 0
        ([1.0, 2.0, 1.0, 1.0], 9.0),  # nothing says which of the rest is better
        ([np.nan, 2.0, 1.0, 0.5], np.log1p(np.exp(-0.6)) + 9.0),
    ],
)
def test_a_triple_is_gold_second_and_worst(scores, value):
    case = loss_inputs([[-4.0, -9.0, -1.0, -7.0]], scores=[scores])
    compare = functools.partial(dpo.loss, beta=0.1, implicit=cpo.implicit)
    np.testing.assert_allclose(tpo.loss(*case, compare=compare)[0], [value], rtol=1e-5)


def test_a_division_is_tilted_by_the_scores():
    """One row by hand: p = (1/2, 1/2), scores 2 and 0, lambda 1: q = sigma(2), gradient p - q."""
    result = checks.compiled(ddo_rm.loss)(*loss_inputs([[-3.0, -3.0]], scores=[[2.0, 0.0]]))
    gap = 1 / (1 + np.exp(-2.0)) - 0.5
    np.testing.assert_allclose(result.losses, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(result.gradient, [[-gap, gap]], rtol=1e-5)


# DPO and IPO


def test_policy_equal_to_reference_gives_log_2_and_a_tie_is_wrong():
    logps, batch = checks.make(2)
    losses, metrics = dpo.loss(logps.replace(policy=logps.reference), batch)
    np.testing.assert_allclose(losses, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(metrics["rewards/accuracies"], 0.0)


def test_the_partition_function_cancels():
    """What depends on the prompt alone changes the rewards and not the loss."""
    logps, batch = checks.make(2)
    shift = np.arange(checks.B, dtype=np.float32)[:, None]
    moved, metrics = dpo.loss(logps.replace(policy=logps.policy - shift), batch)
    still, before = dpo.loss(logps, batch)
    np.testing.assert_allclose(moved, still, rtol=1e-5)
    assert not np.allclose(metrics["rewards/chosen"], before["rewards/chosen"])


def test_beta_and_smoothing_may_be_traced():
    case = checks.make(2)
    traced = jax.jit(lambda b, e: dpo.loss(*case, beta=b, label_smoothing=e)[0])(0.3, 0.2)
    np.testing.assert_allclose(traced, dpo.loss(*case, beta=0.3, label_smoothing=0.2)[0], rtol=1e-6)


def test_the_metrics_of_ipo_are_on_the_scale_of_its_loss():
    logps, batch = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], length=[[2, 3]])
    _, summed = ipo.loss(logps, batch, beta=0.5)
    _, mean = ipo.loss_mean(logps, batch, beta=0.5)
    assert float(summed["rewards/margins"][0]) == 2.0
    assert float(mean["rewards/margins"][0]) == pytest.approx(0.75)
    assert summed.keys() == dpo.loss(logps, batch)[1].keys()


# Numbers at the edge


def test_log_odds_near_and_far_from_0():
    """Against expm1 in float64, where the plain formula of float32 gives inf or 0."""
    score = np.array([-1e-5, -1e-3, -0.5, -0.7, -20.0, -200.0])
    run = jax.vmap(jax.value_and_grad(orpo.log_odds))
    value, slope = run(score.astype(np.float32))
    np.testing.assert_allclose(value, score - np.log(-np.expm1(score)), rtol=1e-6)
    np.testing.assert_allclose(slope, -1 / np.expm1(score), rtol=1e-5)
    certain = run(np.array([0.0, -1e-9], np.float32))
    np.testing.assert_allclose(certain, [[np.log(1e6)] * 2, [0.0] * 2], rtol=1e-6)


@pytest.mark.parametrize("gamma", [-1e6, 1e6])
def test_any_gamma_is_finite(gamma):
    chex.assert_tree_all_finite(hps.loss_full(*loss_inputs(**golden.rows(5)), gamma=gamma))


def test_beyond_slics_margin_a_pair_is_still_imitated():
    """The term that the HPS paper prints inside the max: there, nothing would be left here."""
    result = checks.compiled(slic.loss)(*loss_inputs([[-2.0, -9.0]]))
    np.testing.assert_allclose(result.losses, [0.2], rtol=1e-6)
    np.testing.assert_allclose(result.gradient, [[-0.1, 0.0]], rtol=1e-6)


def test_supervised_fine_tuning_keeps_the_chosen_response():
    _, batch = checks.make(4)
    kept = sft.select(jax.random.key(0), batch)
    chex.assert_shape(kept.response, (checks.B, 1, batch.response.shape[2]))
    for field in ("response", "response_length", "scores", "desirable"):
        chex.assert_trees_all_equal(getattr(kept, field), getattr(batch, field)[:, :1])
    chex.assert_trees_all_equal(kept.prompt_id, batch.prompt_id)


# Which pair is drawn


SELECTS = [functools.partial(hps.select, gamma=0.5), bradley_terry.select_random, modpo.select]
SELECT = pytest.mark.parametrize("select", SELECTS, ids=["hps", "bradley_terry", "modpo"])


def scored_lists(select):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(64, 5, 2) if select is modpo.select else (64, 5))
    _, batch = loss_inputs(np.zeros((64, 5)), scores=scores)
    return batch.replace(prompt_id=jnp.asarray(rng.permutation(1000)[:64], jnp.int32))


@SELECT
def test_a_draw_follows_the_prompt(select):
    """The same draw in another slot, another batch size, a longer list, and on 8 devices."""
    batch, order = scored_lists(select), np.random.default_rng(1).permutation(64)
    draw = jax.jit(lambda batch: select(jax.random.key(0), batch).scores)
    drawn = np.asarray(draw(batch))
    np.testing.assert_array_equal(draw(jax.tree.map(lambda x: x[order], batch)), drawn[order])
    parts = [jax.tree.map(lambda x, i=i: x[i : i + 16], batch) for i in range(0, 64, 16)]
    np.testing.assert_array_equal(np.concatenate([draw(part) for part in parts]), drawn)
    wider = take_responses(batch, jnp.tile(jnp.asarray([0, 1, 2, 3, 4, 0, 0, 0]), (64, 1)))
    absent = wider.response_length.at[:, 5:].set(0)
    np.testing.assert_array_equal(draw(wider.replace(response_length=absent)), drawn)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))
    sharded = draw(jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data"))))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, drawn)


@SELECT
def test_another_step_draws_again(select):
    batch = scored_lists(select)
    first, same, other = (
        np.asarray(select(jax.random.key(seed), batch).scores).reshape(64, -1) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any(axis=1).mean() > 0.5


# What is refused


@pytest.mark.parametrize(
    ("loss", "k", "changes", "message"),
    [
        (dpo.loss, 1, {}, r"dpo\.loss: wanted 2 .* K=1: set `select`"),
        (dpo.loss, 3, {}, r"dpo\.loss: wanted 2 .* K=3: set `select`"),
        (dpo.loss, 2, dict(reference=None), r"reference\.mode"),
        (hps.loss, 2, {}, r"set `select` to hps\.select"),
        (hps.loss, 3, {}, "K=3: set `select`"),
        (hps.loss_published, 3, {}, "K=3: set `select`"),
        *(
            refusal
            for loss in (plackett_luce.loss, plackett_luce.loss_top1)
            for refusal in (
                (loss, 3, dict(scores=None), "wanted `scores`"),
                (loss, 3, dict(scores=np.zeros((8, 3, 4))), r"found 4 \(scores \[B, K, M\]\)"),
                (loss, 1, {}, "at least 2 responses per prompt"),
            )
        ),
        *(
            (loss, 3, dict(scores=None), r"bradley_terry\..*loss: wanted `scores` to order K=3")
            for loss in (bradley_terry.loss, REWARD_LOSS)
        ),
        *(
            (
                functools.partial(exo.loss, label_smoothing=e),
                2,
                {},
                r"label_smoothing: wanted .*0\.5",
            )
            for e in (0, 0.0, 0.5, -0.1)
        ),
        *(
            (functools.partial(discopop.loss, temperature=t), 2, {}, rf"temperature: .*{t}")
            for t in (0.0, 1.5)
        ),
        (functools.partial(mixed.loss, weights=(1.0,)), 2, {}, "found 1 weights and 3 losses"),
        (functools.partial(mixed.loss, losses=(), weights=()), 2, {}, "at least one loss"),
        (tpo.loss, 2, {}, "gold, chosen and rejected"),
        *(
            (functools.partial(robust_dpo.loss, flip_rate=rate), 2, {}, rf"flip_rate: .*{rate}")
            for rate in (0.5, 0.7, -0.1)
        ),
    ],
)
def test_what_a_loss_cannot_compare_is_refused_with_advice(loss, k, changes, message):
    with pytest.raises(ValueError, match=message):
        loss(*loss_inputs(**golden.rows(k, **changes)))


# Shapes that would broadcast


def test_a_reference_of_another_shape_is_refused():
    logps, batch = loss_inputs([[-4.0, -9.0], [-1.0, -2.0]], [[-5.0, -6.0], [-1.0, -1.0]])
    with pytest.raises(AssertionError, match="shape"):
        dpo.loss(logps.replace(reference=logps.reference[:, :1]), batch)
    with pytest.raises(AssertionError, match="shape"):
        simpo.loss(logps.replace(length=logps.length[:1]), batch)


def test_scores_that_are_not_one_per_response_are_refused():
    logps, batch = loss_inputs([[-4.0, -9.0]], [[-5.0, -6.0]], scores=[[1.0, 0.0, 2.0]])
    with pytest.raises(AssertionError, match="shape"):
        plackett_luce.loss(logps, batch)


@pytest.mark.parametrize("where", ["losses", "metrics"])
def test_a_loss_with_an_axis_too_many_is_refused(where):
    column, right = jnp.ones((3, 1)), jnp.ones(3)
    losses, metric = (column, right) if where == "losses" else (right, column)
    with pytest.raises(AssertionError, match="shape"):
        weighted_sums(losses, {"metric": metric}, jnp.array([1.0, 0.0, 2.0]))


@pytest.mark.parametrize(
    "field", ["prompt_length", "weight", "response_length", "scores", "ref_logps"]
)
def test_a_batch_whose_arrays_disagree_is_refused(field):
    logps, batch = loss_inputs([[-4.0, -9.0]], scores=[[1.0, 0.0]])
    batch = dataclasses.replace(batch, ref_logps=logps.policy)
    check_shapes(batch)
    with pytest.raises(AssertionError):
        check_shapes(dataclasses.replace(batch, **{field: jnp.ones((1, 3))}))


def test_scores_of_several_objectives_are_right():
    _, batch = loss_inputs([[-4.0, -9.0]], scores=[[[1.0, 0.0, 2.0], [0.0, 1.0, 2.0]]])
    check_shapes(batch)
