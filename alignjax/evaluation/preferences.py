"""What held-out rows and sampled responses say of a policy, with 95% intervals over prompts."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from alignjax.sampling.generate import Sample

Z95 = 1.959964  # normal quantile


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over prompts and the half-width of its 95% interval."""

    mean: float
    half_width: float
    count: int  # prompts

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


def mean_over_prompts(values: np.ndarray, prompts: Sequence[object]) -> Estimate:
    """Mean with a 95% interval that treats rows of one prompt as one cluster.

    The interval is ``1.96`` standard errors of the ratio estimator over prompts, so rows that
    share a prompt are not counted as independent.

    Args:
      values: ``[N]``, NaN where a row says nothing.
      prompts: ``[N]`` anything hashable that is equal for rows of one prompt.
    """
    said = ~np.isnan(values)
    values = values[said]
    if not len(values):
        return Estimate(float("nan"), float("nan"), 0)
    saying = [prompt for prompt, says in zip(prompts, said, strict=True) if says]
    names = {name: i for i, name in enumerate(dict.fromkeys(saying))}
    group = np.array([names[prompt] for prompt in saying])
    mean = float(values.mean())
    residual = np.bincount(group, weights=values - mean)
    clusters = len(names)
    if clusters < 2:
        return Estimate(mean, float("nan"), clusters)
    error = np.sqrt((residual**2).sum() * clusters / (clusters - 1)) / len(values)
    return Estimate(mean, float(Z95 * error), clusters)


def means(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Means of ``[N]`` arrays over the rows that say something (are not NaN).

    Where none does, there is no entry.
    """
    found = {name: x[~np.isnan(x)] for name, x in values.items()}
    return {name: float(x.mean()) for name, x in found.items() if len(x)}


def preferences(
    reward: np.ndarray, length: np.ndarray, scores: np.ndarray | None
) -> dict[str, np.ndarray]:
    """How rewards order the responses of each row.

    Args:
      reward: ``[N, K]``, implicit or explicit.
      length: ``[N, K]`` tokens, 0 = absent.
      scores: ``[N, K]`` external scores, or None: index 0 is chosen and the rest are not.

    Returns:
      ``[N]`` arrays: ``rewards/margins`` (best minus worst response), ``rewards/accuracies`` (share
      of the row's ordered pairs that the reward orders alike; a tie of rewards is wrong, pairs of
      equal score say nothing), ``rewards/chosen``, ``rewards/rejected`` (best and worst). NaN where
      a row has no ordered pair.
    """
    n = len(reward)
    present = length > 0
    scores = _scores(length, scores)
    better = scores[:, :, None] > scores[:, None, :]
    better &= present[:, :, None] & present[:, None, :]
    right = better & (reward[:, :, None] > reward[:, None, :])
    pairs = better.sum((1, 2))
    says = pairs > 0
    row = np.arange(n)
    best, worst = _best_and_worst(length, scores)

    def where_said(x: np.ndarray) -> np.ndarray:
        return np.where(says, x, np.nan)

    return {
        "rewards/accuracies": where_said(right.sum((1, 2)) / np.maximum(pairs, 1)),
        "rewards/margins": where_said(reward[row, best] - reward[row, worst]),
        "rewards/chosen": where_said(reward[row, best]),
        "rewards/rejected": where_said(reward[row, worst]),
    }


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
    """What the HPS paper's tables report of preferred and dispreferred held-out responses.

    With T = log pi - log pi_ref, for the best (y_w) and the worst (y_l) response of each row::

        RM_DPO   = T(y_w) - T(y_l)                        without beta
        RM_R-DPO = RM_DPO - 0.01 (|y_w| - |y_l|)
        winner_log_ratio = T(y_w)                         what the paper calls KL

    ``winner_log_ratio`` is no divergence from the reference: y_w is not sampled from the policy.

    Args:
      policy, reference: ``[N, K]`` nats.
      length: ``[N, K]`` tokens, 0 = absent.
      scores: ``[N, K]``, or None: index 0 is the best, the next one the worst.

    Returns:
      ``[N]`` arrays by these names; NaN where a row has no two responses of different score.
    """
    ratio = policy - reference
    scores = _scores(length, scores)
    best, worst = _best_and_worst(length, scores)
    row = np.arange(len(ratio))
    says = scores[row, best] > scores[row, worst]
    margin = ratio[row, best] - ratio[row, worst]
    longer = (length[row, best] - length[row, worst]).astype(np.float64)
    found = {
        "RM_DPO": margin,
        "RM_R-DPO": margin - 0.01 * longer,
        "winner_log_ratio": ratio[row, best],
    }
    return {name: np.where(says, x, np.nan) for name, x in found.items()}


def best_of(scores: np.ndarray, first: int = 0) -> np.ndarray:
    """``[P]`` index of the best of each row's first so many scores (0: all); the first of equals.

    Args:
      scores: ``[P, S]``, larger is better.
      first: N of "best of N".
    """
    return scores[:, : first or scores.shape[1]].argmax(axis=1)


def labelled(
    policy: np.ndarray, reference: np.ndarray | None, desirable: np.ndarray, length: np.ndarray
) -> dict[str, np.ndarray]:
    """What a policy did to labelled responses, in nats and as a ranking over all rows.

    Args:
      policy, reference: ``[N, K]`` nats; without a reference log-probabilities stand for ratios.
      desirable: ``[N, K]`` bool.
      length: ``[N, K]`` tokens, 0 = absent.

    Returns:
      ``[N]`` arrays: ``log_ratio/desirable`` and ``log_ratio/undesirable``, the row's mean over the
      class; ``labels/accuracies``, the share of the undesirable responses of all rows that have a
      smaller log-ratio than the row's desirable ones (a tie is wrong). NaN where a row has none.
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


def kl_to_reference(samples: Sequence[Sample]) -> Estimate:
    """``KL(policy || reference)`` per response, nats, along the policy's own samples.

    The samples must come at temperature 1 with no ids cut off, and with a reference. Of responses
    that did not end it is the divergence up to there.
    """
    return mean_over_prompts(np.array([s.kl for s in samples]), [s.prompt for s in samples])


def tokens(samples: Sequence[Sample]) -> Estimate:
    """Tokens per response, end-of-sequence included."""
    return mean_over_prompts(
        np.array([float(s.length) for s in samples]), [s.prompt for s in samples]
    )
