"""No alignment at all: the supervised policy that methods start from, for every preference."""

from alignjax.commands.policies import TRAINED, Network, Policies
from alignjax.recipes.multi_objective.method import Setting


def train(setting: Setting) -> Policies:
    """Trains nothing: the supervised policy responds for every preference."""
    return setting.policies(TRAINED, [Network(p, folder="") for p in setting.preferences])
