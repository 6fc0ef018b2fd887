"""Trains nothing: the supervised policy responds for every preference, as a baseline."""

from alignjax.commands.policies import TRAINED, Network, Policies
from alignjax.recipes.multi_objective.method import Setting


def train(setting: Setting) -> Policies:
    """Returns the supervised policy for every preference, without training."""
    return setting.policies(TRAINED, [Network(p, folder="") for p in setting.preferences])
