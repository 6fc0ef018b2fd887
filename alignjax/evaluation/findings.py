"""Finds signs that something is wrong with a run: sentences for its log and its report."""

from collections.abc import Mapping, Sequence
from typing import Any

MANY = 0.5  # share of cut responses from which on there is a warning
SOME = 0.1  # the same for prompts
FAR = 25.0  # the same for the KL to the reference, nats per response


def of_data(settings: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """Checks settings and data before training.

    Args:
      settings: the config as in config.json.
      report: the data report as in data_report.json.
    """
    found = []
    if not settings["model"]["path"] and settings["sft"] is None and settings["loss"] is not None:
        found.append(
            "the policy starts from random weights, and there is no supervised stage: set "
            "model.path or sft"
        )
    for side, counts in report.items():
        kept, warned = counts.get("kept", 0), counts.get("warned", {})
        where = "training" if side == "train" else side.replace("_", "-")
        for reason, what, limit, field in (
            ("truncated_response", "have a truncated response", MANY, "max_response_tokens"),
            ("truncated_prompt", "have a truncated prompt", SOME, "max_prompt_tokens"),
        ):
            # At most 1: rows can be dropped after they were counted.
            share = min(1.0, warned.get(reason, 0) / kept) if kept else 0.0
            if share >= limit:
                found.append(f"{share:.0%} of the {where} rows {what}: raise data.{field}")
    labels = report.get("train", {}).get("kept_labels")
    if labels:
        share = labels["desirable_fraction"]
        if min(share, 1 - share) < 0.05:
            found.append(f"{share:.1%} of the labels are desirable: one class is nearly missing")
    return found


def of_result(summary: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Checks the results of a run.

    Args:
      summary: as in summary.json.
      lines: of metrics.jsonl.
    """
    after = {name: side(pair, "after") for name, pair in summary.get("table", {}).items()}
    found = [*_of_table({name: x for name, x in after.items() if x is not None})]
    found += _of_fronts(summary)
    if summary.get("skipped_steps"):
        found.append(f"{summary['skipped_steps']} steps had no finite loss or gradient")
    rewards = [x["rewards/margins"] for x in lines if x.get("rewards/margins") is not None]
    if len(rewards) > 2 and max(map(abs, rewards)) < 1e-6:
        found.append("the reward margin is 0 at every step: nothing is learned")
    spreads = [x["scores/std"] for x in lines if x.get("scores/std") is not None]
    equal = sum(spread == 0 for spread in spreads)
    if equal > len(spreads) / 2:
        found.append(
            f"in {equal} of {len(spreads)} logged steps every prompt's samples had equal scores, "
            "and nothing was learned: prompts of another difficulty, or more samples, may help"
        )
    losses = [x["eval_loss"] for x in lines if x.get("eval_loss") is not None]
    if len(losses) > 2 and losses[-1] > min(losses) + 0.05 * abs(min(losses)):
        found.append(
            f"the held-out loss rose from {min(losses):.4g} to {losses[-1]:.4g}: fewer steps, or a "
            "lower learning rate, may be better"
        )
    return found


def _of_fronts(summary: Mapping[str, Any]) -> list[str]:
    found = []
    for front in summary.get("fronts", {}).values():
        means = [
            [point[name]["mean"] for name in summary["objectives"]] for point in front["points"]
        ]
        if len(means) > 1 and all(x == means[0] for x in means):
            found.append("all preferences have the same scores: training did not separate them")
        for name, what in (("collapsed", "are repetitive or empty"), ("unfinished", "were cut")):
            if front[name] >= MANY:
                found.append(f"{front[name]:.0%} of the sampled responses {what}")
    return found


def _of_table(after: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = []
    cut = after.get("unfinished", {}).get("mean", 0.0)
    if cut >= MANY:
        found.append(
            f"{cut:.0%} of the sampled responses were cut at the token limit: raise "
            "evaluate.max_new_tokens"
        )
    kl = after.get("KL to reference, nats", {}).get("mean", 0.0)
    if kl > FAR:
        found.append(
            f"the KL to the reference is {kl:.1f} nats per response: the policy is far from it"
        )
    for name, rate in after.items():
        if name.startswith("win rate/") and rate.get("high", 1.0) < 0.5:
            text = f"{rate['mean']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}]"
            found.append(f"{name} is {text}: the responses got worse by this score")
    accuracy = after.get("rewards/accuracies")
    if accuracy is not None and "half_width" in accuracy:
        low, high = (accuracy["mean"] + s * accuracy["half_width"] for s in (-1, 1))
        if low <= 0.5 <= high:
            found.append(
                f"the held-out accuracy, {accuracy['mean']:.3f} ± {accuracy['half_width']:.3f}, "
                "is not distinguishable from chance"
            )
    return found


def side(pair: Any, name: str) -> Any:
    """Returns one side of a row of a summary's table; of a reward model there is only "after"."""
    if isinstance(pair, dict) and "mean" in pair:
        return pair if name == "after" else None
    return pair.get(name)
