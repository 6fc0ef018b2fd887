"""No alignment at all: the supervised policy, whatever the preference. What methods start from."""

from alignjax.recipes.multi_objective import training
from alignjax.recipes.multi_objective.method import Respond, Setting


def train(setting: Setting) -> Respond:
    """Trains nothing: the supervised policy answers for every preference."""
    respond = training.respond_with(setting, setting.load_reference())
    return lambda preference, asked: respond(asked)
