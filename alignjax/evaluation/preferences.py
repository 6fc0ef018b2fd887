"""Computes metrics on held-out rows and on samples: one value per row or sample."""

from collections.abc import Sequence

import numpy as np

from alignjax.evaluation.statistics import Interval, bootstrap_over_prompts, mean_over_prompts
from alignjax.sampling.generate import Sample


def reward_metrics(
    reward: np.ndarray, length: np.ndarray, scores: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Measures how rewards order the responses of each row.

    Args:
      reward: ``[N, K]``, implicit or explicit.
      length: ``[N, K]`` tokens, 0 = absent.
      scores: ``[N, K]`` external scores, or None: response 0 is chosen, the others are rejected.

    Returns:
      ``[N]`` arrays: ``rewards/margins`` (best minus worst response), ``rewards/accuracies`` (share
      of the row's pairs with different scores that the reward orders in the same way; equal rewards
      are wrong), ``rewards/chosen`` and ``rewards/rejected`` (best and worst). NaN if a row has no
      such pair. If a row has more than two responses, also those of `list_metrics`.
    """
    n = len(reward)
    present = length > 0
    scores = _scores(length, scores)
    better = scores[:, :, None] > scores[:, None, :]
    better &= present[:, :, None] & present[:, None, :]
    right = better & (reward[:, :, None] > reward[:, None, :])
    pairs = better.sum((1, 2))
    row = np.arange(n)
    best, worst = _best_and_worst(length, scores)

    def of_pairs(x: np.ndarray) -> np.ndarray:
        return np.where(pairs > 0, x, np.nan)

    return {
        "rewards/accuracies": of_pairs(right.sum((1, 2)) / np.maximum(pairs, 1)),
        "rewards/margins": of_pairs(reward[row, best] - reward[row, worst]),
        "rewards/chosen": of_pairs(reward[row, best]),
        "rewards/rejected": of_pairs(reward[row, worst]),
        **list_metrics(reward, length, scores),
    }


BEST, TIES = "rewards/best_accuracies", "rewards/best_ties"


def list_metrics(
    reward: np.ndarray, length: np.ndarray, scores: np.ndarray
) -> dict[str, np.ndarray]:
    """Tells for lists of more than two responses whether the best one has the highest reward.

    RewardBench 2 measures its lists of four in this way, except that its code counts a tie as a
    success: it takes the first of equal rewards, which is the right response.

    Args:
      reward, length, scores: ``[N, K]``, as in `reward_metrics`. Of several best responses the one
        with the largest reward counts.

    Returns:
      ``[N]`` arrays: `BEST`, 1.0 if a best response has a higher reward than all others, and
      `TIES`, 1.0 if it shares the highest with one of them. NaN for rows of two responses, and if
      all scores are equal or unknown. Empty if no row is longer.
    """
    present = length > 0
    scored = present & ~np.isnan(scores)
    best = scored & (scores == np.where(scored, scores, -np.inf).max(1, keepdims=True))
    others = scored & ~best
    longer = present.sum(1) > 2
    if not longer.any():
        return {}
    counts = longer & best.any(1) & others.any(1)
    top = np.where(best, reward, -np.inf).max(1)
    rest = np.where(others, reward, -np.inf).max(1)
    return {
        BEST: np.where(counts, top > rest, np.nan),
        TIES: np.where(counts, top == rest, np.nan),
    }


def over_prompts(name: str, values: np.ndarray, prompts: Sequence[str]) -> Interval:
    """Averages ``[N]`` values of a metric; shares of lists get a bootstrap interval."""
    of_lists = name.startswith((BEST, TIES))
    return (bootstrap_over_prompts if of_lists else mean_over_prompts)(values, prompts)


def padded(lists: Sequence[Sequence[float]]) -> np.ndarray:
    """Makes a table ``[N, K]`` of N lists; NaN after the end of shorter ones."""
    table = np.full((len(lists), max(map(len, lists))), np.nan)
    for row, values in zip(table, lists, strict=True):
        row[: len(values)] = values
    return table


def _scores(length: np.ndarray, scores: np.ndarray | None) -> np.ndarray:
    if scores is None:
        scores = np.zeros(length.shape)
        scores[:, 0] = 1.0
    return scores


def _best_and_worst(length: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    present = length > 0
    return (
        np.where(present, scores, -np.inf).argmax(1),
        np.where(present, scores, np.inf).argmin(1),
    )


def margins(
    policy: np.ndarray, reference: np.ndarray, length: np.ndarray, scores: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Computes margins as in the HPS paper.

    With T = log pi - log pi_ref, for the best (y_w) and the worst (y_l) response of each row::

        RM_DPO   = T(y_w) - T(y_l)                        without beta
        RM_R-DPO = RM_DPO - 0.01 (|y_w| - |y_l|)
        winner_log_ratio = T(y_w)                         called KL in the paper

    ``winner_log_ratio`` is not the KL to the reference, because y_w is not a sample of the policy.

    Args:
      policy, reference: ``[N, K]`` nats.
      length: ``[N, K]`` tokens, 0 = absent.
      scores: ``[N, K]``, or None: response 0 is the best, response 1 the worst.

    Returns:
      ``[N]`` arrays by these names; NaN if a row has no two responses with different scores.
    """
    ratio = policy - reference
    scores = _scores(length, scores)
    best, worst = _best_and_worst(length, scores)
    row = np.arange(len(ratio))
    differ = scores[row, best] > scores[row, worst]
    margin = ratio[row, best] - ratio[row, worst]
    longer = (length[row, best] - length[row, worst]).astype(np.float64)
    values = {
        "RM_DPO": margin,
        "RM_R-DPO": margin - 0.01 * longer,
        "winner_log_ratio": ratio[row, best],
    }
    return {name: np.where(differ, x, np.nan) for name, x in values.items()}


def best_of(scores: np.ndarray, first: int = 0) -> np.ndarray:
    """Finds the best of each row's first N scores, ``[P]`` indices; the first of equal ones.

    Args:
      scores: ``[P, S]``, larger is better.
      first: N of "best of N"; 0: all.
    """
    return scores[:, : first or scores.shape[1]].argmax(axis=1)


def label_metrics(
    policy: np.ndarray, reference: np.ndarray | None, desirable: np.ndarray, length: np.ndarray
) -> dict[str, np.ndarray]:
    """Measures the log-ratios of labelled responses, and their ranking over all rows.

    Args:
      policy, reference: ``[N, K]`` nats; without a reference, log-probabilities are used as ratios.
      desirable: ``[N, K]`` bool.
      length: ``[N, K]`` tokens, 0 = absent.

    Returns:
      ``[N]`` arrays: ``log_ratio/desirable`` and ``log_ratio/undesirable``, the row's mean over the
      class, nats; ``labels/accuracies``, the share of all rows' undesirable responses that have a
      smaller log-ratio than the row's desirable ones (a tie is wrong). NaN if a row has none.
    """
    ratio = policy if reference is None else policy - reference
    good, bad = desirable & (length > 0), ~desirable & (length > 0)

    def mean(values: np.ndarray, among: np.ndarray) -> np.ndarray:
        count = among.sum(axis=1)
        total = np.where(among, values, 0.0).sum(axis=1)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    others = np.sort(ratio[bad])
    below = np.searchsorted(others, ratio, side="left") / max(len(others), 1)
    return {
        "log_ratio/desirable": mean(ratio, good),
        "log_ratio/undesirable": mean(ratio, bad),
        "labels/accuracies": mean(below, good & (len(others) > 0)),
    }


def kl_to_reference(samples: Sequence[Sample]) -> Interval:
    """Estimates ``KL(policy || reference)`` per response, nats, on the policy's own samples.

    They must be sampled at temperature 1 with no ids cut off, and with a reference. For cut
    responses it is the KL of their tokens.
    """
    return mean_over_prompts(np.array([s.kl for s in samples]), [s.prompt for s in samples])


def unfinished(samples: Sequence[Sample]) -> Interval:
    """Computes the share of responses that were cut at the token limit."""
    cut = np.array([float(not s.ended) for s in samples])
    return mean_over_prompts(cut, [s.prompt for s in samples])


def tokens(samples: Sequence[Sample]) -> Interval:
    """Averages the tokens per response, end-of-sequence included."""
    return mean_over_prompts(
        np.array([float(s.length) for s in samples]), [s.prompt for s in samples]
    )
