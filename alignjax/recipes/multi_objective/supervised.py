"""No alignment at all: the supervised policy that methods start from, for every preference."""

from alignjax.recipes.multi_objective import sampling
from alignjax.recipes.multi_objective.method import Respond, Setting


def train(setting: Setting) -> Respond:
    """Trains nothing: the supervised policy responds for every preference."""
    params = setting.reference.load()
    return lambda preference, questions: sampling.respond(setting, params, questions)
