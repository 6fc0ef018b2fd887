"""The documentation names what is there: commands, configs, fields, files, names, sections."""

import argparse
import ast
import copy
import dataclasses
import functools
import importlib
import inspect
import pathlib
import re
import shlex

import pytest
from absl import flags

import alignjax.config
from alignjax import cli, recipes
from alignjax.config import Config, load
from alignjax.data import sources
from alignjax.errors import UserError
from alignjax.models.config import LoraConfig, ModelConfig
from alignjax.rewards import scorers
from alignjax.types import Logps
from alignjax.world import sources as world
from benchmarks import losses_page, losses_table
from tests import layering_test

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted([ROOT / "README.md", CONTRIBUTING, ROOT / "BUILD.md", *ROOT.glob("docs/**/*.md")])
SCRIPTS = sorted(
    [
        *ROOT.glob("configs/**/*.py"),
        *ROOT.glob("benchmarks/*.py"),
        *(path for path in ROOT.glob("launch/*") if path.suffix in (".py", ".sh", ".sbatch")),
    ]
)
# Commands that the test knows how to check.
STARTS = re.compile(
    r"(?:python3? -m alignjax|python benchmarks/\w+\.py|python launch/local\.py|"
    r"launch/(?:tpu_vm|gke)\.sh run|launch/tpu_vm\.sh all|sbatch [^\n`]*?launch/slurm\.sbatch)"
    r"(?= |$|`|\n)[^\n`]*"
)
OVERRIDE = re.compile(r"--set[ =]([\w.]+=(?:'[^']*'|[^\s`,)]+))")
# A module and a name in it, as in `dpo.loss`, but no file.
NAME = re.compile(r"(?<![\w./])([a-z_]\w*)\.([A-Za-z_]\w*)(?![\w/]|\.\w)")
FILE = re.compile(r"(?<![\w./<*])(?:[\w-]+/)+[\w.-]+\.(?:py|md|sh|sbatch|yaml|txt)(?![\w/])")
EXAMPLES = ("name.py", "name_test.py", "name_data.py")  # of files that a reader is to write


def spans(text: str) -> list[str]:
    """Lists blocks of code and text in backticks; a span over several lines becomes one line."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"^    \S.*$", prose, re.M)
    inline = re.findall(r"`+([^`]+)`+", prose)
    return [*blocks, *indented, *(re.sub(r"\s*\n\s*", " ", span) for span in inline)]


def text_of(path: pathlib.Path) -> list[str]:
    """Lists the parts of a file that hold commands: code of a page, docstring of a script."""
    text = path.read_text()
    if path.suffix == ".md":
        return spans(text)
    return [ast.get_docstring(ast.parse(text)) or ""] if path.suffix == ".py" else comments(text)


def comments(script: str) -> list[str]:
    """Reads the comments of a shell script, without the signs in front."""
    lines = [line.lstrip("#") for line in script.splitlines() if line.startswith("#")]
    return ["\n".join(lines)]


def commands(texts: list[str]) -> list[str]:
    """Finds commands; each becomes one line, without the remark behind it."""
    found = []
    for text in texts:
        joined = re.sub(r"\s*\\\n\s*", " ", text)
        for command in STARTS.findall(joined):
            remark = re.split(r" {2,}(?=[^\s-])|\s#|\)$", command)[0]
            found.append(remark.strip())
    return found


def listed(paths: list[pathlib.Path]) -> list[tuple[str, str]]:
    """Lists every different command of files, with the first file that holds it."""
    every = {command: path for path in reversed(paths) for command in commands(text_of(path))}
    return sorted((str(path.relative_to(ROOT)), command) for command, path in every.items())


@pytest.fixture(scope="session")
def own_config(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Writes the config that docs/models.md has a reader write."""
    page = (ROOT / "docs" / "models.md").read_text()
    path = tmp_path_factory.mktemp("own") / "my_config.py"
    path.write_text(re.findall(r"```python\n(.*?)```", page, re.S)[0])
    return path


def check_command(command: str, own: pathlib.Path) -> None:
    """Raises an error where the program would refuse a command before it reads anything."""
    words = shlex.split(command.partition(" > ")[0])
    script = next((word for word in words if word.startswith("benchmarks/")), None)
    if script:
        check_benchmark(script, words[words.index(script) + 1 :])
    elif "alignjax" in words:
        check_verb(words[words.index("alignjax") + 1 :], own)
    elif "launch/local.py" in words:
        check_verb(words[words.index("--") + 1 :], own)
    else:  # arguments behind the script's own words are passed to `run`
        first = next(i for i, word in enumerate(words) if word.startswith("launch/"))
        skip = 1 if words[first].endswith(".sbatch") else 2
        check_verb(["run", *words[first + skip :]], own)


def check_verb(words: list[str], own: pathlib.Path) -> None:
    if not words:
        return
    verb = cli.VERBS[words[0]]
    if words[1:] in ([], ["ARG..."]):  # the text mentions the verb alone
        return
    parsed = copy.deepcopy(cli.FLAGS)
    rest = parsed(["alignjax", *words[1:]])
    assert len(rest) == 1, f"not flags: {rest[1:]}"
    ours = [parsed[name] for name in cli.options.BY_NAME]
    given = {flag.name for flag in ours if flag.present}
    assert given <= {*verb.reads}, f"{words[0]} takes no {given - {*verb.reads}}"
    assert given >= {*verb.needs}, f"{words[0]} wants {verb.needs}"
    if parsed["config"].value:
        load_config(parsed["config"].value, parsed["set"].value, own)


def load_config(path: str, overrides: list[str], own: pathlib.Path) -> Config:
    """Loads a config that a page names; one without a folder is the reader's own."""
    return load.load(str(ROOT / path) if "/" in path else str(own), overrides)


class ParsedError(Exception):
    """The arguments of a benchmark were read."""


def check_benchmark(script: str, words: list[str]) -> None:
    """Lets a benchmark read its arguments, and nothing more."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser) -> argparse.Namespace:
        parse(parser, words)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")  # some set it themselves
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        if not hasattr(module, "argparse"):
            assert not words, f"{script} takes no arguments"
            return
        with pytest.raises(ParsedError):
            module.main()


@pytest.mark.parametrize(("file", "command"), listed([*PAGES, *SCRIPTS]))
def test_a_command_is_taken(file, command, own_config):
    del file  # for the reader of a failure
    check_command(command, own_config)


@pytest.mark.parametrize(
    "command",
    [
        "python -m alignjax rnu --config=configs/demo/dpo.py",
        "python -m alignjax run --confg=configs/demo/dpo.py --workdir=runs/x",
        "python -m alignjax run --config=configs/demo/dpo.py",
        "python -m alignjax run --config=configs/demo/dop.py --workdir=runs/x",
        "python -m alignjax run --config=configs/hps.py:9b --workdir=runs/x",
        "python -m alignjax run --config=configs/demo/dpo.py --workdir=x --set loss.betta=0.1",
        "python -m alignjax compare --runs=a,b --out=c.png --tie=1",
        "python launch/local.py --processes=2 -- run --config=configs/none.py --workdir=x",
        "launch/tpu_vm.sh run --config=configs/demo/dpo.py --wrokdir=x",
        "sbatch --nodes=4 launch/slurm.sbatch --config=configs/demo/dpo.py",
        "python benchmarks/step.py --bacthes=3",
        "python benchmarks/hps.py --n=3",
        "python benchmarks/none.py",
    ],
)
def test_a_wrong_command_is_noticed(command, own_config):
    assert commands([command]) == [command]
    with pytest.raises((AssertionError, KeyError, ImportError, SystemExit, UserError, flags.Error)):
        check_command(command, own_config)


@functools.cache
def every_config() -> tuple[Config, ...]:
    return tuple(load.load(str(path), []) for path in sorted(ROOT.glob("configs/**/*.py")))


def applies(override: str) -> bool:
    """Tells whether a change fits some config; ``...`` stands for any value."""
    field, _, value = override.partition("=")
    value = value if value == "..." else value.rstrip(".").strip("'")
    for config in every_config():
        try:
            load.override(config, [f"{field}={value}"])
        except UserError as error:
            if (
                value == "..."
                and "no such field" not in str(error)
                and "no fields" not in str(error)
            ):
                return True
            continue
        return True
    return False


@pytest.mark.parametrize("page", [*PAGES, *SCRIPTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_changes_fit_a_config(page):
    found = {change for text in text_of(page) for change in OVERRIDE.findall(text)}
    assert not [change for change in sorted(found) if not applies(change)]


def test_a_change_that_fits_no_config_is_noticed():
    assert applies("recipe.game.rounds=2")
    assert applies("data.path=...")
    assert not applies("recipe.game.ronds=2")
    assert not applies("data.paht=...")


@functools.cache
def names_of_modules() -> dict[str, set[str]]:
    """Collects the names in modules by the module's name; modules of one name count together."""
    names: dict[str, set[str]] = {}
    for path in [*ROOT.glob("alignjax/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        module = path.parent if path.name == "__init__.py" else path.with_suffix("")
        own = names.setdefault(module.name, set())
        if path.name == "__init__.py":
            own |= {beside.stem for beside in path.parent.iterdir()}
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                own |= {
                    x.id for target in targets for x in ast.walk(target) if isinstance(x, ast.Name)
                }
            elif isinstance(node, ast.ImportFrom):
                own |= {alias.asname or alias.name for alias in node.names}
    # Configs import `alignjax.world.sources` as `world`, and so do the pages.
    names["world"] |= names["sources"]
    names["logps"] |= {*dir(Logps), *vars(Logps)["__dataclass_fields__"]}  # an argument of losses
    names["config"] |= {*vars(Config)["__dataclass_fields__"]}
    return names


def unknown_names(text: str) -> list[str]:
    """Finds names like ``dpo.los``, of a module of ours that has no such thing."""
    fields = {field for config in every_config() for field in vars(config)}
    modules = names_of_modules()
    return [
        f"{module}.{name}"
        for module, name in NAME.findall(text)
        if module in modules
        and module not in fields
        and name not in modules[module]
        and name not in ("py", "json", "jsonl", "md", "png", "html", "model")
    ]


def missing_files(text: str, page: pathlib.Path) -> list[str]:
    """Finds paths of this repository, or of the package, that lead to nothing."""
    places = (ROOT, ROOT / "alignjax", ROOT / "docs", page.parent)
    ours = {path.name for place in places[:2] for path in place.iterdir()}
    return [
        file
        for file in FILE.findall(text)
        if file.split("/")[0] in ours and not file.endswith(EXAMPLES)
        if not any((place / file).exists() for place in places)
    ]


def test_names_and_files_in_docstrings_exist():
    """Of single backticks: what is in double ones is code, with names of its own."""
    for path in [*ROOT.glob("alignjax/**/*.py"), *SCRIPTS]:
        for text in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", path.read_text()):
            wrong = unknown_names(text) + missing_files(text, path)
            assert not wrong, f"{path.relative_to(ROOT)}: {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_and_files_exist(page):
    found = spans(page.read_text())
    assert not [name for text in found for name in unknown_names(text)]
    assert not [file for text in found for file in missing_files(text, page)]


def run_block(block: str) -> None:
    """Runs Python of a page with the names that configs import; checks what partials bind."""
    names = {**vars(alignjax.config), "STEPS": 100, "partial": functools.partial}
    names |= {"recipes": recipes, "scorers": scorers, "sources": sources, "world": world}
    names |= {"ModelConfig": ModelConfig, "LoraConfig": LoraConfig}
    for path in ROOT.glob("alignjax/losses/*.py"):
        names[path.stem] = importlib.import_module(f"alignjax.losses.{path.stem}")
    exec(block, names)
    for value in names.values():
        check_partials(value)


def check_partials(value: object) -> None:
    """Raises an error where a partial, at any depth of a config, binds what nothing reads."""
    if isinstance(value, functools.partial):
        inspect.signature(value.func).bind_partial(*value.args, **value.keywords)
        check_partials(tuple(value.keywords.values()))
    elif isinstance(value, tuple):
        for each in value:
            check_partials(each)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        check_partials(tuple(vars(value).values()))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_of_pages_runs(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        ast.parse(block)
        # transformers is not among the dependencies; tests/library runs its own page.
        if "from_pretrained" not in block and page.name != "library.md":
            run_block(block)


@pytest.mark.parametrize(
    "block",
    [
        "loss = partial(dpo.loss, betta=0.1)",
        "candidates = CandidatesConfig(scorers=(partial(scorers.reward_model, paht='x'),))",
        "lora = LoraConfig(ranc=8)",
        "from alignjax import optim",
    ],
)
def test_wrong_python_is_noticed(block):
    with pytest.raises((TypeError, ImportError)):
        run_block(block)


def tour() -> dict[str, int]:
    """Reads the tour's files, and their lines, from the table of CONTRIBUTING.md."""
    rows = re.findall(r"^\| \[`[\w/.]+`\]\(([\w/.]+)\) \| (\d+) \|", CONTRIBUTING.read_text(), re.M)
    return {file: int(lines) for file, lines in rows}


def test_the_tour_is_short_and_goes_down():
    files = tour()
    found = {file: len((ROOT / file).read_text().splitlines()) for file in files}
    assert 8 <= len(files) <= 12
    assert sum(found.values()) <= 1500
    assert all(abs(found[file] - lines) <= 30 for file, lines in files.items()), found
    modules = [file.removesuffix(".py").replace("/", ".") for file in files]
    for place, file in enumerate(files):
        for name, _ in layering_test.imports(file, (ROOT / file).read_text()):
            above = [m for m in modules[:place] if name == m or name.startswith(f"{m}.")]
            assert not above, f"{file} imports {name}, which the tour has before it"


def test_the_page_of_losses_is_current():
    """docs/losses.md is made from docstrings and signatures, and names every loss."""
    assert losses_page.PAGE.read_text() == losses_page.page()


def test_the_readme_names_every_file_of_losses():
    rows = re.search(
        r"^\| learns from \| files \|\n((?:\|.*\n)+)", (ROOT / "README.md").read_text(), re.M
    )
    named = set(re.findall(r"`(\w+)`", rows[1])) - {"label_smoothing", "apo_zero", "apo_down"}
    assert named == set(losses_page.modules())


def test_the_table_of_the_world_has_every_loss_or_says_why_not():
    """Left out: reward models, several objectives, what is drawn by `select`, and on-policy."""
    losses = {
        f"{name}.{function}"
        for name, module in losses_page.modules().items()
        for function in losses_page.functions(module, losses_page.LOSS)
    }
    left_out = {name for name in losses if ".reward_" in name}
    left_out |= {f"{name}.loss" for name in ("apo", "grpo", "xpo", "nash_md")}
    left_out |= {f"{name}.loss" for name in ("modpo", "paretohqd", "hps", "sft")}
    left_out |= {
        "rewards_in_context.loss",
        "hps.loss_published",
        "grpo.loss_clipped",
        "grpo.loss_batch",
    }
    assert losses - losses_table.KIND.keys() == left_out
    assert losses_table.KIND.keys() <= losses


def test_names_that_are_not_there_are_noticed():
    assert unknown_names("`dpo.los` and `scorers.reward_modle`") == [
        "dpo.los",
        "scorers.reward_modle",
    ]
    assert unknown_names("`dpo.loss`, `loss.beta`, `config.json`, `world.golden`") == []
    text = "`losses/dpo.py`, `losses/opd.py`, `docs/data.md`, `docs/none.md`, `elsewhere/a.py`"
    assert missing_files(text, CONTRIBUTING) == ["losses/opd.py", "docs/none.md"]


def broken_links(page: pathlib.Path, text: str) -> list[str]:
    """Finds links to missing files, and to sections without a heading."""
    broken = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, section = target.partition("#")
        to = page.parent / file if file else page
        if not to.exists() or (section and section not in sections(to.read_text())):
            broken.append(target)
    return broken


def sections(text: str) -> set[str]:
    """Lists the anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken_links(page, page.read_text()) == []


def test_broken_links_are_noticed():
    text = "## A step, counted\n[a](#a-step-counted) [b](#b) [c](docs/data.md) [d](docs/none.md)"
    page = ROOT / "README.md"
    wrong = broken_links(page, text)
    assert wrong == ["#a-step-counted", "#b", "docs/none.md"]
