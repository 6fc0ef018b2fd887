"""Defines the commands: the function, help text, flags and example of each."""

import dataclasses
import functools
import re
from collections.abc import Callable

from alignjax import losses
from alignjax.cli import actions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verb:
    """A command and its flags."""

    do: Callable[[], None]
    text: str  # for the help
    reads: tuple[str, ...]  # its flags; others are refused
    example: str = ""  # the required flags, with values
    more: str = ""  # flags of a longer example
    either: tuple[str, ...] = ()  # flags of the example that are not required
    notes: dict[str, str] = dataclasses.field(default_factory=dict)  # flag -> its help text here
    computes: bool = False  # can run in several processes

    @property
    def needs(self) -> list[str]:
        """The required flags."""
        return [x for x in re.findall(r"--(\w+)=", self.example) if x not in self.either]


def _method(name: str, about: str) -> Verb:
    """Makes the command that trains a model with one loss, named after it."""
    return Verb(
        do=functools.partial(actions.align, name),
        text=about,
        reads=(
            *("model", "data", "set", "workdir", "out", "print_config", "allow_config_change"),
            "allow_fallback",
        ),
        example="--model=my-model --data=my-data.jsonl",
        more=f"--workdir=runs/{name} --set train.steps=100 --set lora.rank=8",
        notes={
            "workdir": f"folder of the run, by default runs/{name}; resumes if it contains one",
            "out": "the same as --workdir",
        },
        computes=True,
    )


CONFIG = ("config", "set")
_GRPO = _method("grpo", "GRPO: trains on the policy's own samples, which a rule or a model scores")
METHODS = {
    **{name: _method(name, about) for name, about in losses.methods().items()},
    "grpo": dataclasses.replace(
        _GRPO,
        reads=(*_GRPO.reads, "reward_model"),
        notes={
            **_GRPO.notes,
            "data": "prompts with the right answers, which a rule compares with the samples",
            "reward_model": "workdir of a reward model that scores the samples instead",
        },
    ),
    "reward": _method("reward", "Bradley-Terry reward model, from pairs or scored lists"),
}
VERBS = {
    "run": Verb(
        do=actions.run,
        text="train and evaluate a config; resumes",
        reads=(*CONFIG, "workdir", "allow_config_change", "allow_fallback"),
        example="--config=configs/demo/dpo.py --workdir=runs/first",
        more="--set train.epochs=2",
        computes=True,
    ),
    "demo": Verb(
        do=actions.demo,
        text="run configs/demo/dpo.py (embedded world, minutes on a laptop)",
        reads=(*CONFIG, "workdir", "allow_config_change", "allow_fallback"),
        computes=True,
    ),
    "generate": Verb(
        do=actions.generate,
        text="sample responses from a run (--workdir) or a model (--model)",
        reads=(
            *(*CONFIG, "workdir", "model", "out", "format", "overwrite", "prompts", "samples"),
            *("temperature", "max_new_tokens", "preference", "checkpoint", "allow_fallback"),
        ),
        more="--workdir=runs/first --out=samples.jsonl --samples=1",
        computes=True,
    ),
    "chat": Verb(
        do=actions.chat,
        text="chat in the terminal with a run, a model folder or a GGUF file",
        reads=("model", "against", "set", "temperature", "max_new_tokens", "checkpoint"),
        example="--model=runs/first",
        more="--against=my-model --temperature=0.7",
        notes={
            "model": "workdir of a run, model folder saved by transformers, or a GGUF file",
            "against": "a second model, which responds side by side",
            "set": "sampling settings, e.g. --set evaluate.top_p=0.9",
        },
    ),
    "evaluate": Verb(
        do=actions.evaluate,
        text="evaluate a run again (--workdir), or compute win rates (--records, --against)",
        reads=(*CONFIG, "workdir", "records", "against", "reward_model", "judge", "tie", "out"),
        more="--records=ours.jsonl --against=theirs.jsonl --reward_model=runs/rm",
        computes=True,
    ),
    "report": Verb(
        do=actions.report,
        text="write report.html of a run: a single file for a browser",
        reads=("workdir",),
        example="--workdir=runs/first",
    ),
    "compare": Verb(
        do=actions.compare,
        text="compare metrics of runs at equal steps and at equal KL",
        reads=("runs", "out"),
        example="--runs=runs/dpo,runs/hps --out=compared.png",
    ),
    "front": Verb(
        do=actions.front,
        text="compare Pareto fronts of multi-objective runs",
        reads=("runs", "out"),
        example="--runs=runs/paretohqd,runs/soups --out=front.png",
    ),
    "score": Verb(
        do=actions.score,
        text="score responses with reward models",
        reads=("records", "reward_model", "out", "max_prompt_tokens", "max_response_tokens"),
        example="--records=lists.jsonl --reward_model=runs/rm --out=scored.jsonl",
        computes=True,
    ),
    "describe": Verb(
        do=actions.describe,
        text="print the config as JSON, after --set",
        reads=CONFIG,
        example="--config=configs/demo/dpo.py",
    ),
    "plan": Verb(
        do=actions.plan,
        text="estimate memory, FLOPs, time and cost of a config on other machines",
        reads=(*CONFIG, "topology", "mesh", "parts", "responses", "price", "sweep", "out"),
        example="--config=configs/demo/dpo.py --topology=v5e:2x2",
    ),
    "data": Verb(
        do=actions.data,
        text="read and check the data, print the data report and first rows",
        reads=(*CONFIG, "show"),
        example="--config=configs/demo/dpo.py",
        more="--show=tokens",
    ),
    "import": Verb(
        do=actions.import_model,
        text="convert a model folder saved by transformers",
        reads=("from", "to"),
        example="--from=downloads/llama --to=models/llama",
    ),
    "export": Verb(
        do=actions.export,
        text="export a run (--workdir) or a model (--from) for transformers or llama.cpp",
        reads=(
            *("workdir", "from", "to", "dtype", "adapter", "base", "preference"),
            *("checkpoint", "allow_fallback"),
        ),
        example="--workdir=runs/first --to=exported/first",
        either=("workdir",),  # or from
        more="--dtype=bfloat16",
    ),
    **METHODS,
}
