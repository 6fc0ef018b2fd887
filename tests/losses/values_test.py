"""Every loss of pairs, lists and labelled responses against its formula, written again in NumPy.

The losses of Adversarial Preference Optimization, whose rows are of two kinds, are in apo_test.py.
"""

import itertools
from functools import partial

import numpy as np
import pytest

from alignjax.losses import (
    alphapo,
    anchored,
    aot,
    bco,
    bpo,
    bradley_terry,
    cpo,
    ddro,
    discopop,
    dpo,
    exo,
    f_dpo,
    hps,
    ipo,
    kto,
    ld_dpo,
    lipo,
    mixed,
    modpo,
    nca,
    orpo,
    plackett_luce,
    pro,
    rdpo,
    rdro,
    robust_dpo,
    robust_plackett_luce,
    rpo,
    rrhf,
    sft,
    simpo,
    slic,
    sppo,
    tpo,
    wpo,
)
from tests.losses import checks, golden


def softplus(x):
    return np.logaddexp(0, x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def smoothed(margin, rate):
    """Cross-entropy of a label that is right with probability 1 - rate."""
    return (1 - rate) * softplus(-margin) + rate * softplus(margin)


def ordered(scores):
    """The pairs (better, worse)."""
    return [p for p in itertools.permutations(range(len(scores)), 2) if scores[p[0]] > scores[p[1]]]


def rewards(reward, x, best=0, rest=(1,)):
    """The metrics of a comparison of one response with the mean of the others."""
    rest = list(rest)
    return {
        "rewards/chosen": reward[best],
        "rewards/rejected": reward[rest].mean(),
        "rewards/margins": reward[best] - reward[rest].mean(),
        "rewards/accuracies": (reward[best] > reward[rest]).mean(),
        "logps/chosen": x.policy[best],
        "logps/rejected": x.policy[rest].mean(),
    }


# Pairs


def dpo_formula(beta, rate, x):
    reward = beta * x.ratio
    return smoothed(reward[0] - reward[1], rate), rewards(reward, x)


def robust_formula(beta, rate, x):
    margin = beta * (x.ratio[0] - x.ratio[1])
    value = (1 - rate) * softplus(-margin) - rate * softplus(margin)
    return value / (1 - 2 * rate), {"rewards/margins": margin}


def cpo_formula(rate, x):
    nll = -x.policy[0] / x.length[0]
    metrics = {"nll_per_token": nll, "rewards/rejected": 0.3 * x.policy[1]}
    return smoothed(0.3 * (x.policy[0] - x.policy[1]), rate) + 0.7 * nll, metrics


def cpo_simpo_formula(x):
    p = x.policy / x.length
    return smoothed(2.5 * (p[0] - p[1]) - 1.0, 0.1) - 0.7 * p[0], {"nll_per_token": -p[0]}


def reshaped(f, of, x):
    """DPO at beta 0.2 with f of the log-ratio, or of another log-probability, for the reward."""
    w, j = 0.2 * f(of(x))
    return softplus(j - w), {"rewards/chosen": w}


def log_ratio(x):
    return x.ratio


def discopop_formula(x):
    m = 0.2 * (x.ratio[0] - x.ratio[1])
    g = sigmoid(m / 0.3)
    return (1 - g) * softplus(-m) + g * np.exp(-m)


def alphapo_formula(x):
    w, j = 2.5 * (1 - np.exp(0.4 * x.policy / x.length) ** -1.0) / 0.4
    return smoothed(w - j - 0.5, 0.1)


def aot_formula(reference, x):
    """Where the rows are in the order of their margins, as in BY_MARGIN."""
    v = np.sort(reference[:, 0] - reference[:, 1])
    return smoothed(0.2 * (x.policy[0] - x.policy[1] - v[x.index]), 0.1)


def ld_dpo_formula(x):
    reward = 0.2 * (x.ratio - 0.7 * (x.policy_tail - x.reference_tail))
    weighted = x.policy - 0.7 * x.policy_tail
    metrics = {"rewards/margins": reward[0] - reward[1], "logps/rejected": weighted[1]}
    return softplus(reward[1] - reward[0]), metrics


def wpo_formula(x):
    fixed = PAIRS["policy"][x.index]
    w, j = np.exp((fixed - x.log_squares) / x.length)
    return w * j * softplus(-0.2 * (x.ratio[0] - x.ratio[1])), {"pair_weight": w * j}


def rpo_formula(x):
    nll = -x.policy[0] / x.length[0]
    margin = 0.2 * (x.ratio[0] - x.ratio[1])
    return softplus(-margin) + 0.7 * nll, {"nll_per_token": nll, "rewards/margins": margin}


def mixed_formula(x):
    first, second = softplus(0.3 * (x.ratio[1] - x.ratio[0])), softplus(x.ratio[1] - x.ratio[0])
    nll = -x.policy[0] / x.length[0]
    metrics = {
        "dpo.loss/rewards/margins": 0.3 * (x.ratio[0] - x.ratio[1]),
        "dpo.loss_2/rewards/margins": x.ratio[0] - x.ratio[1],
        "sft.loss_chosen/nll_per_token": nll,
    }
    return 0.5 * first + 2.0 * second + 0.1 * nll, metrics


def orpo_formula(x):
    p = x.policy / x.length
    odds = np.exp(p) / (1 - np.exp(p))
    log_ratio = np.log(odds[0] / odds[1])
    metrics = {"log_odds_ratio": log_ratio, "nll_per_token": -p[0], "rewards/chosen": p[0]}
    return -p[0] + 0.4 * softplus(-log_ratio), metrics


def simpo_formula(rate, x):
    w, j = 2.5 * x.policy / x.length
    return smoothed(w - j - 1.0, rate)


def rdpo_formula(x):
    margin = 0.2 * (x.ratio[0] - x.ratio[1]) + 0.06 * (x.length[0] - x.length[1])
    return softplus(-margin)


def slic_formula(x):
    return max(1.5 - x.policy[0] + x.policy[1], 0) - 0.2 * x.policy[0], {"nll": -x.policy[0]}


def nca_formula(x):
    w, j = 0.2 * x.ratio
    return softplus(-w) + 0.5 * softplus(w) + 0.5 * softplus(j)


def hps_formula(x):
    w, j = 0.1 * x.ratio
    return np.log1p(x.drawn_from * np.exp(j - w)), {"negatives": x.drawn_from}


def modpo_formula(main, x):
    w = np.array([2.0, 1.0, 5.0]) / 8
    margins = sum(w[i] * (x.scores[0, i] - x.scores[1, i]) for i in range(3) if i != main)
    return softplus(-(0.3 * (x.ratio[0] - x.ratio[1]) - margins) / w[main])


# Lists


def centred_formula(x):
    s = x.scores
    pairs = [
        softplus(x.policy[j] - x.policy[w] + 0.7 + 0.5 * (s[w] - s[j]))
        + 0.01 * (x.policy[w] + x.policy[j]) ** 2
        for w, j in ordered(s)
    ]
    return np.mean(pairs)


def tpo_formula(x):
    gold, w, *_, j = np.argsort(-x.scores)
    nll = -x.policy[gold] / x.length[gold]
    margin = 0.3 * (x.policy[w] - x.policy[j])
    return softplus(-margin) + 0.7 * nll, {"nll_per_token": nll, "rewards/margins": margin}


def bradley_terry_formula(reward, margin, x):
    return np.mean([softplus(reward(x)[j] - reward(x)[w] + margin) for w, j in ordered(x.scores)])


def ipo_formula(x):
    return np.mean([(x.ratio[w] - x.ratio[j] - 1 / 0.6) ** 2 for w, j in ordered(x.scores)])


def ranking(x):
    """-log of the probability that Plackett-Luce gives to the order of decreasing scores."""
    r = 0.1 * x.ratio[np.argsort(-x.scores)]
    return sum(np.log(np.exp(r[j:]).sum()) - r[j] for j in range(len(r)))


def robust_ranking(x):
    """The worst of all rankings, found by trying them."""
    r = 0.1 * x.ratio

    def value(order):
        return sum(np.log(np.exp(r[list(order[j:])]).sum()) - r[order[j]] for j in range(len(r)))

    worst = max(value(order) for order in itertools.permutations(range(len(r))))
    return 0.8 * ranking(x) + 0.2 * worst


def bpo_formula(power, scale, x):
    ratio = np.exp(-0.2 * (x.ratio[0] - x.ratio[1]))
    last = np.log(ratio) if power == 0 else (1 - ratio**-power) / power
    return (ratio ** (power + 1) / (power + 1) + last) / scale


def top_1(x):
    reward, best = 0.1 * x.ratio, x.scores.argmax()
    rest = np.delete(np.arange(len(reward)), best)
    return np.log(np.exp(reward).sum()) - reward[best], rewards(reward, x, best, rest)


def against(reward, scores, first, rest, gamma):
    """Eq. 8 of HPS for one response and its negatives."""
    q = softmax(gamma * scores[rest])
    return np.log1p(len(rest) * (q * np.exp(reward[rest])).sum() / np.exp(reward[first]))


def hps_full(gamma, second, x):
    reward, order = 0.2 * x.ratio, np.argsort(-x.scores)
    terms = [against(reward, x.scores, order[i], order[i + 1 :], gamma) for i in (0, 1)]
    return terms[0] + second * terms[1], {"negatives": len(order) - 1}


def divergence(p, q):
    return (p * np.log(p / q)).sum()


def nca_list(x):
    r, w = 0.2 * x.ratio, softmax(x.scores / 0.5)
    return (w * softplus(-r) + softplus(r) / len(r)).sum()


def nca_info(x):
    return -(softmax(x.scores / 0.5) * np.log(softmax(0.2 * x.ratio))).sum()


def lipo_formula(x):
    s, tau = 0.2 * x.ratio, np.empty(len(x.scores))
    tau[np.argsort(-s)] = np.arange(1, len(s) + 1)
    gain, discount = 2**x.scores, 1 / np.log(1 + tau)
    return sum(
        (gain[i] - gain[j]) * abs(discount[i] - discount[j]) * softplus(s[j] - s[i])
        for i, j in ordered(x.scores)
    )


def rrhf_formula(penalty, x):
    p, best = x.policy / x.length**penalty, x.scores.argmax()
    hinge = sum(max(p[j] - p[i], 0) for i, j in ordered(x.scores))
    return 3.0 * hinge - x.policy[best], {"nll": -x.policy[best], "rewards/chosen": p[best]}


def pro_formula(x):
    p, order = x.policy / x.length, np.argsort(-x.scores)
    value = -0.3 * 9 * x.policy[order[0]]
    for place in range(len(order) - 1):
        k, rest = order[place], order[place + 1 :]
        inverse = np.append(0.0, x.scores[k] - x.scores[rest])
        inverse[0] = inverse.max()
        value += np.log(np.exp(p[np.append(k, rest)] * inverse).sum()) - p[k] * inverse[0]
    return value, {"rewards/chosen": p[order[0]]}


def sppo_list(x):
    wins = sigmoid((x.scores[:, None] - x.scores) / 0.5)
    return ((x.ratio - (wins.mean(axis=1) - 0.5) / 0.3) ** 2).mean()


# Labelled responses


F = 0.25  # of the responses are desirable


def class_weights(x, reduction):
    good, bad = (1 / F, 1 / (1 - F)) if reduction == "class_mean" else (1.0, 1.0)
    return (x.length > 0) * np.where(x.desirable, good, bad)


def kto_formula(z, x):
    sigma = sigmoid(0.5 * (x.ratio - max(0, z)))
    return np.where(x.desirable, 1.3 * (1 - sigma), 0.7 * sigma).sum()


def anchored_formula(x):
    return np.where(x.desirable, 1.3 * sigmoid(-0.5 * x.ratio), 0.7 * sigmoid(0.5 * x.ratio)).sum()


def bco_formula(reduction, density, x):
    sigma = sigmoid(0.5 * (x.ratio - 0.4))
    weight = class_weights(x, reduction) * np.where(x.desirable, 1.0, density(x.index))
    return -(weight * np.log(np.where(x.desirable, sigma, 1 - sigma))).sum()


def rdro_formula(alpha, reduction, x):
    present = x.length > 0
    good, bad = (1 + alpha) * softplus(x.ratio) - x.ratio, (1 - alpha) * softplus(x.ratio)
    value = (class_weights(x, reduction) * np.where(x.desirable, good, bad)).sum()
    count = present.sum()
    metrics = {
        "desirable": (present & x.desirable).sum() / count,
        "log_ratio/desirable": (x.ratio * (present & x.desirable)).sum() / count,
        "log_ratio/undesirable": (x.ratio * (present & ~x.desirable)).sum() / count,
    }
    return value, metrics


def ddro_formula(transform, x):
    g = (np.exp(-x.ratio) - 0.4) / 0.6
    term = np.where(x.desirable, np.log(1 + g), np.log(1 + 1 / g))
    term = -softplus(-term) if transform else term
    return (class_weights(x, "class_mean") * term).sum()


def sft_formula(x):
    nll = -(x.policy * (x.length > 0)).sum()
    metrics = {"nll": nll / max((x.length > 0).sum(), 1)}
    return metrics["nll"], metrics | {"nll_per_token": nll / max(x.length.sum(), 1)}


# The rows


PAIRS, LISTS = golden.rows(2), golden.rows(5)
TAILS = golden.rows(2)
for name, seed in (("policy_tail", 6), ("reference_tail", 7)):
    TAILS[name] = TAILS["policy"] * np.random.default_rng(seed).uniform(0, 1, (8, 2))
SQUARES = golden.rows(2)
SQUARES["log_squares"] = PAIRS["policy"] + np.random.default_rng(8).normal(0, 2, (8, 2))
BY_MARGIN = golden.rows(2)
BY_MARGIN["policy"] = PAIRS["policy"][np.argsort(PAIRS["policy"][:, 0] - PAIRS["policy"][:, 1])]
DRAWN = golden.rows(2, drawn_from=np.arange(1, 9))
SEVERAL = golden.rows(2, scores=np.random.default_rng(5).normal(0, 2, (8, 2, 3)))
TIED = golden.rows(4)
TIED["scores"][:, 3] = TIED["scores"][:, 0]  # these two are not compared
SHORT = golden.rows(3, reference=None, length=np.random.default_rng(0).integers(0, 9, (8, 3)))
SHORT["length"][2] = 0
SHORT["policy"] *= SHORT["length"] > 0


def labelled(b, k, *, absent=0.0, ratio=None, **more):
    rng = np.random.default_rng(0)
    given = golden.rows(k, b, desirable=rng.random((b, k)) < F, **more)
    ratio = rng.normal(0, 3, (b, k)) if ratio is None else ratio(rng, (b, k))
    present = (rng.random((b, k)) >= absent) | (np.arange(k) == 0)
    policy = given["reference"] + ratio
    return given | {"policy": policy, "length": 2 * present}


def inside_the_clamp(rng, shape):
    return rng.uniform(-6, -np.log(0.4) - 0.1, shape)


def density(row):
    return 0.5 + 0.03 * row


SOME_ABSENT = labelled(64, 3, absent=0.2)

VALUES = {
    **{
        f"dpo {b} {e}": (partial(dpo.loss, beta=b, label_smoothing=e), partial(dpo_formula, b, e))
        for b, e in ((0.1, 0.0), (0.5, 0.0), (0.25, 0.1))
    },
    **{
        f"robust_dpo {b} {e}": (
            partial(robust_dpo.loss, beta=b, flip_rate=e),
            partial(robust_formula, b, e),
        )
        for b, e in ((0.1, 0.1), (0.5, 0.3))
    },
    **{
        f"cpo {rate}": (
            partial(cpo.loss, beta=0.3, nll_weight=0.7, label_smoothing=rate),
            partial(cpo_formula, rate),
        )
        for rate in (0.0, 0.2)
    },
    "cpo simpo": (
        partial(
            cpo.loss_simpo, beta=2.5, gamma_beta_ratio=0.4, nll_weight=0.7, label_smoothing=0.1
        ),
        cpo_simpo_formula,
    ),
    **{
        f"f_dpo {name}": (partial(f_dpo.loss, beta=0.2, implicit=implicit), partial(reshaped, *f))
        for name, implicit, f in (
            ("forward", f_dpo.forward_kl, (lambda t: 1 - np.exp(-t), log_ratio)),
            ("js", f_dpo.jensen_shannon, (lambda t: np.log(2 / (1 + np.exp(-t))), log_ratio)),
            (
                "alpha",
                partial(f_dpo.alpha, alpha=0.3),
                (lambda t: (1 - np.exp(-0.3 * t)) / 0.3, log_ratio),
            ),
        )
    },
    "dpo per token": (
        partial(dpo.loss, beta=0.2, implicit=ipo.implicit_mean),
        partial(reshaped, lambda t: t, lambda x: x.ratio / x.length),
    ),
    "aot": (
        partial(aot.loss, beta=0.2, label_smoothing=0.1),
        partial(aot_formula, PAIRS["reference"]),
        BY_MARGIN,
    ),
    "discopop": (partial(discopop.loss, beta=0.2, temperature=0.3), discopop_formula),
    "anchored": (
        partial(anchored.loss, beta=0.2),
        lambda x: 1 - sigmoid(0.2 * x.ratio[0]) + sigmoid(0.2 * x.ratio[1]),
    ),
    "anchored down": (
        partial(anchored.loss_down, beta=0.2),
        lambda x: sigmoid(0.2 * x.ratio[0]) + 1 - sigmoid(0.2 * (x.ratio[0] - x.ratio[1])),
    ),
    "anchored unpaired": (
        partial(anchored.loss_unpaired, beta=0.5, desirable_weight=1.3, undesirable_weight=0.7),
        anchored_formula,
        labelled(40, 2),
    ),
    "bco pairs": (
        partial(bco.loss_pairs, beta=0.2),
        lambda x: softplus(-0.2 * x.ratio[0]) + softplus(0.2 * x.ratio[1]),
    ),
    "alphapo": (
        partial(
            alphapo.loss,
            beta=2.5,
            gamma_beta_ratio=0.2,
            label_smoothing=0.1,
            implicit=partial(alphapo.implicit, alpha=0.4),
        ),
        alphapo_formula,
    ),
    "ld_dpo": (partial(ld_dpo.loss, beta=0.2, alpha=0.3), ld_dpo_formula, TAILS),
    "wpo": (partial(wpo.loss, beta=0.2), wpo_formula, SQUARES),
    "ld_dpo hinge": (
        partial(ld_dpo.weighted, loss=partial(slic.loss_hinge, beta=0.2), alpha=0.3),
        lambda x: np.maximum(0, 1 - ld_dpo_formula(x)[1]["rewards/margins"]),
        TAILS,
    ),
    "wpo ipo": (
        partial(wpo.weighted, loss=partial(ipo.loss, beta=0.2)),
        lambda x: wpo_formula(x)[1]["pair_weight"] * (x.ratio[0] - x.ratio[1] - 1 / 0.4) ** 2,
        SQUARES,
    ),
    "rpo": (partial(rpo.loss, beta=0.2, nll_weight=0.7), rpo_formula),
    "mixed": (
        partial(
            mixed.loss,
            losses=(
                partial(dpo.loss, beta=0.3),
                partial(dpo.loss, beta=1.0),
                sft.loss_chosen,
            ),
            weights=(0.5, 2.0, 0.1),
        ),
        mixed_formula,
    ),
    "tpo": (
        partial(
            tpo.loss,
            nll_weight=0.7,
            compare=partial(dpo.loss, beta=0.3, implicit=cpo.implicit),
        ),
        tpo_formula,
        LISTS,
    ),
    "bradley_terry reward, centred": (
        checks.of_scores(
            partial(bradley_terry.reward_loss, margin=0.7, score_margin=0.5, center_weight=0.01)
        ),
        centred_formula,
        TIED,
    ),
    "orpo": (partial(orpo.loss, odds_weight=0.4), orpo_formula),
    **{
        f"simpo {rate}": (
            partial(simpo.loss, beta=2.5, gamma_beta_ratio=0.4, label_smoothing=rate),
            partial(simpo_formula, rate),
        )
        for rate in (0.0, 0.2)
    },
    "rdpo": (
        partial(rdpo.loss, beta=0.2, implicit=partial(rdpo.implicit, penalty=0.3)),
        rdpo_formula,
    ),
    "slic": (partial(slic.loss, margin=1.5, nll_weight=0.2), slic_formula),
    "slic hinge": (
        partial(slic.loss_hinge, beta=0.2),
        lambda x: max(1 - 0.2 * (x.ratio[0] - x.ratio[1]), 0),
    ),
    "ipo": (
        partial(ipo.loss, beta=0.3),
        lambda x: (x.ratio[0] - x.ratio[1] - 1 / 0.6) ** 2,
    ),
    "ipo mean": (
        partial(ipo.loss_mean, beta=0.3),
        lambda x: ((x.ratio / x.length)[0] - (x.ratio / x.length)[1] - 1 / 0.6) ** 2,
    ),
    "exo": (
        partial(exo.loss, beta=0.2, label_smoothing=0.05),
        lambda x: divergence(softmax(0.2 * x.ratio), np.array([0.95, 0.05])),
    ),
    "nca": (partial(nca.loss, beta=0.2), nca_formula),
    "sppo": (
        partial(sppo.loss, beta=0.3),
        lambda x: (x.ratio[0] - 1 / 0.6) ** 2 + (x.ratio[1] + 1 / 0.6) ** 2,
    ),
    "hps": (hps.loss, hps_formula, DRAWN),
    "hps published": (
        hps.loss_published,
        lambda x: smoothed(0.25 * (x.ratio[0] - x.ratio[1]), 0.1),
    ),
    **{
        f"modpo {main}": (
            partial(modpo.loss, beta=0.3, preference=(2.0, 1.0, 5.0), main=main),
            partial(modpo_formula, main),
            SEVERAL,
        )
        for main in (0, 2)
    },
    "bradley_terry": (
        partial(bradley_terry.loss, beta=0.3),
        partial(bradley_terry_formula, lambda x: 0.3 * x.ratio, 0.0),
        TIED,
    ),
    "bradley_terry reward": (
        checks.of_scores(partial(bradley_terry.reward_loss, margin=0.7)),
        partial(bradley_terry_formula, lambda x: x.policy, 0.7),
        TIED,
    ),
    "ipo list": (partial(ipo.loss_list, beta=0.3), ipo_formula, TIED),
    "plackett_luce": (plackett_luce.loss, ranking, LISTS),
    "robust_plackett_luce": (
        partial(robust_plackett_luce.loss, rho=0.2),
        robust_ranking,
        golden.rows(4),
    ),
    **{
        f"bpo {power}": (
            partial(bpo.loss, beta=0.2, power=power, scale=scale),
            partial(bpo_formula, power, scale),
        )
        for power, scale in ((0.0, 1.0), (0.5, 4.0))
    },
    "plackett_luce top 1": (plackett_luce.loss_top1, top_1, LISTS),
    **{
        f"hps full {gamma}": (
            partial(hps.loss_full, beta=0.2, gamma=gamma),
            partial(hps_full, gamma, 0.0),
            LISTS,
        )
        for gamma in (-2.0, 0.0, 1.5)
    },
    "hps full, another unit": (
        partial(hps.loss_full, beta=0.2, gamma=3.0, score_sd=2.0),
        partial(hps_full, 1.5, 0.0),
        LISTS,
    ),
    "hps two valid": (
        partial(hps.loss_two_valid, beta=0.2, gamma=0.7, second_weight=0.3),
        partial(hps_full, 0.7, 0.3),
        LISTS,
    ),
    "exo list": (
        partial(exo.loss_list, beta=0.2, beta_r=0.5),
        lambda x: divergence(softmax(0.2 * x.ratio), softmax(x.scores / 0.5)),
        LISTS,
    ),
    "nca list": (partial(nca.loss_list, beta=0.2, alpha=0.5), nca_list, LISTS),
    "nca info": (partial(nca.loss_info, beta=0.2, alpha=0.5), nca_info, LISTS),
    "lipo": (partial(lipo.loss, beta=0.2), lipo_formula, LISTS),
    **{
        f"rrhf {penalty}": (
            partial(rrhf.loss, rank_weight=3.0, length_penalty=penalty),
            partial(rrhf_formula, penalty),
            LISTS,
        )
        for penalty in (1.0, 0.5)
    },
    "pro": (partial(pro.loss, nll_weight=0.3), pro_formula, golden.rows(4)),
    "sppo list": (partial(sppo.loss_list, beta=0.3, temperature=0.5), sppo_list, LISTS),
    **{
        f"kto {z}": (
            partial(kto.loss, beta=0.5, desirable_weight=1.3, undesirable_weight=0.7),
            partial(kto_formula, z),
            labelled(40, 2, baseline=z),
        )
        for z in (-0.7, 0.4)
    },
    **{
        f"bco {reduction} {name}": (
            partial(
                bco.loss, beta=0.5, desirable_fraction=F, reduction=reduction, density_ratio=ours
            ),
            partial(bco_formula, reduction, theirs),
            labelled(40, 2, running_baseline=0.4),
        )
        for reduction in ("class_mean", "batch_mean")
        for name, ours, theirs in (
            ("plain", None, lambda row: 1.0),
            ("weighted", lambda batch: density(batch.prompt_id), density),
        )
    },
    **{
        f"rdro {reduction} {alpha}": (
            partial(rdro.loss, alpha=alpha, desirable_fraction=F, reduction=reduction),
            partial(rdro_formula, alpha or F, reduction),
            SOME_ABSENT,
        )
        for reduction in ("class_mean", "batch_mean")
        for alpha in (None, 0.35)
    },
    **{
        f"ddro {loss.__name__}": (
            partial(loss, alpha=0.4, desirable_fraction=F),
            partial(ddro_formula, loss is ddro.loss_log_sigmoid),
            labelled(50, 2, ratio=inside_the_clamp),
        )
        for loss in (ddro.loss, ddro.loss_log_sigmoid)
    },
    "sft": (sft.loss, sft_formula, SHORT),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_metrics_and_gradients(name):
    loss, formula, *case = VALUES[name]
    golden.check(loss, formula, *case or [PAIRS])
