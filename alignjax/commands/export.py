"""The command ``export``: writes a policy or reward model for transformers, with a model card.

If the name ends in ``.gguf``, it writes a file for llama.cpp.
"""

import dataclasses
import logging
import pathlib
from typing import Any

import numpy as np

from alignjax import gguf_files
from alignjax.commands import finished_run, import_model, networks, policies
from alignjax.commands.finished_run import Trained
from alignjax.commands.model_card import (
    WHOLE,
    code_of_adapters,
    code_of_rewards,
    model_card,
)
from alignjax.commands.policies import Choice, Policies
from alignjax.data.tokenizer import load as tokenizers
from alignjax.errors import UserError
from alignjax.models.hf.peft import save_adapters
from alignjax.models.hf.save import save_model, write_json
from alignjax.models.lora import merge
from alignjax.rewards import reward_models
from alignjax.runtime import sharding, workdirs
from alignjax.runtime.storage import read_json
from alignjax.stages import pretrained
from alignjax.types import Params

log = logging.getLogger("alignjax")


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network to export to one folder."""

    params: Params
    identity: dict[str, str]  # digests of its data, tokenizer and reference
    step: int
    note: str = ""  # in a multi-objective run, the networks chosen for the preference


def run(
    source: str,
    *,
    workdir: str,
    to: str,
    dtype: str,
    adapter: bool,
    preference: str,
    base: str,
    checkpoint: str = "last",
) -> None:
    """Exports a run's model (`export`), or the model ``source`` (`export_model`)."""
    of_run: dict[str, Any] = dict(adapter=adapter, preference=preference, base=base)
    if source and not (workdir or any(of_run.values()) or checkpoint != "last"):
        import_model.export_model(source, to, dtype=dtype)
    elif workdir and not source:
        export(workdir, to, dtype=dtype, checkpoint=checkpoint, **of_run)
    else:
        raise UserError(
            "export requires either --workdir=RUN, or --from=MODEL without --workdir, --adapter, "
            "--preference, --base and --checkpoint"
        )


def export(
    workdir: str,
    to: str,
    *,
    dtype: str = "",
    adapter: bool = False,
    preference: str = "",
    base: str = "",
    checkpoint: str = "last",
) -> None:
    """Writes the policy or the reward model of a run.

    The newest checkpoint of a policy is written, also before the run ends. Adapters are merged into
    their base, unless ``adapter`` is set.

    Args:
      workdir: a run's folder.
      to: a folder, or a name that ends in ``.gguf``, that does not exist yet; it appears when it is
        complete.
      dtype: dtype of the stored tensors; empty: the parameters' own, which keeps every bit, or
        ``f16`` in a GGUF file.
      adapter: write only the adapters, in PEFT's format.
      preference: in a multi-objective run, see `policies.choose_for`; or ``all``: each of the
        config's preferences, in folders below ``to``.
      base: name of the adapters' base, on a hub or a folder; empty: the last part of the run's
        ``model.path``.
      checkpoint: last or best, see `finished_run.at_checkpoint`.

    Raises:
      UserError: there is no such run, no checkpoint, no family for the model, or ``to`` exists; the
        run has no adapters, or their base is not available elsewhere; see `policies.choose_for`;
        or no single network responds to the preference.
    """
    run = pathlib.Path(workdir)
    if not (run / "config.json").is_file():
        raise UserError(f"--workdir: {workdir} holds no run (no config.json)")
    config = read_json(run / "config.json")
    import_model.check_dtype(to, dtype)
    trained, several = finished_run.trained_in(run, config), policies.find(run, config)
    trained = finished_run.at_checkpoint(trained, checkpoint)
    choices = _choices(several, workdir, preference, adapter=adapter)
    outputs = () if config["loss"] else _outputs(run)
    _check_kind(config, run, to, dtype, adapter=adapter, base=base, several=len(choices) > 1)
    with import_model.destination(to, dtype) as top, workdirs.owned(run):
        for name, choice in choices.items():
            if several is not None and choice is not None:
                network = chosen(trained, several, choice, merged=not adapter)
            elif config["loss"] or adapter:
                network = newest(trained, len(outputs), merged=not adapter)
            else:
                network = _reward_model(run)
            (top / name).mkdir(exist_ok=True)
            if adapter:
                _write_adapters(top / name, config, run, trained, network, base)
            else:
                stored = trained.model.param_dtype
                stored = stored if gguf_files.is_gguf(to) else dtype or stored
                _write(top / name, config, run, trained, network, dtype=stored, outputs=outputs)
            log.info(
                "%s: %sstep %d of %s%s",
                pathlib.Path(to) / name,
                "the adapters of " if adapter else "",
                network.step,
                workdir,
                f", {network.note}" if network.note else "",
            )


def _choices(
    several: Policies | None, workdir: str, preference: str, *, adapter: bool
) -> dict[str, Choice | None]:
    """Chooses the networks to write: folder below ``to`` (empty: ``to`` itself) -> choice."""
    choices: dict[str, Choice | None]
    if several is not None and preference == "all":
        if several.way == policies.PROMPT:
            raise UserError(
                "--preference: wanted one preference, found all: one network responds to all of "
                "them, as the prompt asks"
            )
        choices = {
            policies.as_flag(wanted).replace(",", "-"): policies.choose(several, wanted)
            for wanted in several.preferences
        }
    else:
        choices = {"": policies.choose_for(several, workdir, preference)}
    for choice in choices.values():
        if choice is not None:
            policies.require_single(choice, adapter=adapter)
    return choices


def _write(
    folder: pathlib.Path,
    config: dict[str, Any],
    run: pathlib.Path,
    trained: Trained,
    network: Network,
    *,
    dtype: str,
    outputs: tuple[str, ...],
) -> None:
    """Writes a folder that transformers loads."""
    tokenizer, original = _tokenizer_and_config(config, run, folder, network.identity["tokenizer"])
    save_model(
        folder, network.params, trained.model, dtype=dtype, original=original, outputs=outputs
    )
    code = WHOLE
    if outputs:
        limits = {name: config["data"][name] for name in reward_models.LIMITS}
        write_json(folder / reward_models.OURS, limits)
        code = code_of_rewards(tokenizer, original["pad_token_id"], limits)
    name = run.resolve().name
    card = model_card(config, network.identity, network.step, name, network.note, code=code)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_adapters(
    folder: pathlib.Path,
    config: dict[str, Any],
    run: pathlib.Path,
    trained: Trained,
    network: Network,
    base: str,
) -> None:
    """Writes a folder that PEFT loads, with the tokenizer and a model card."""
    assert trained.lora is not None  # see _check_kind
    base = base or pathlib.PurePath(trained.model.path).name
    log.info("%s: the adapters name %s as their base; --base=NAME changes it", run, base)
    save_adapters(folder, network.params, trained.lora, trained.model, base)
    _tokenizer_and_config(config, run, folder, network.identity["tokenizer"])
    name = run.resolve().name
    about = (config, network.identity, network.step, name, network.note)
    code = code_of_adapters(base, rewards=not config["loss"])
    card = model_card(*about, code=code, adapted=base)
    (folder / "README.md").write_text(card, encoding="utf-8")


def newest(trained: Trained, objectives: int, *, merged: bool) -> Network:
    """Restores the newest checkpoint; merges adapters into their base if ``merged``."""
    mesh = sharding.make_mesh(1, 1, 1)
    step = finished_run.newest_step(trained)
    params, record = finished_run.restore(trained, mesh, step, objectives=objectives)
    identity = record["identity"]
    if trained.lora is not None and merged:
        params = merge(
            finished_run.load_base(trained, mesh, finished_run.base_digest(identity)),
            params,
            trained.lora,
        )
    return Network(params, identity, step)


def chosen(trained: Trained, several: Policies, choice: Choice, *, merged: bool) -> Network:
    """Loads the network for a preference."""
    source = networks.source(trained, several, sharding.make_mesh(1, 1, 1))
    steps = [networks.newest_step(source, network) for network in choice.networks]
    if merged:
        params = networks.load_whole(source, choice)
    else:
        params = networks.load_trained(source, choice.networks[int(np.argmax(choice.weights))])
    return Network(params, several.identity, max(steps), choice.description)


def _reward_model(run: pathlib.Path) -> Network:
    """Loads a trained reward model, whose adapters are merged already."""
    model = reward_models.find(str(run))
    params = reward_models.load_params(model, sharding.make_mesh(1, 1, 1))
    summary = read_json(run / "summary.json")
    if "identity" not in summary:
        raise UserError(f"--workdir: {run} is of an earlier version; export it with that version")
    return Network(params, summary["identity"], summary["steps"])


def _check_kind(
    config: dict[str, Any],
    run: pathlib.Path,
    to: str,
    dtype: str,
    *,
    adapter: bool,
    base: str,
    several: bool,
) -> None:
    """Refuses combinations that cannot be written, and adapters whose base is not available."""
    if gguf_files.is_gguf(to) and (adapter or several or not config["loss"]):
        raise UserError(
            "--to: a GGUF file holds one whole policy: no reward model, no --adapter, no "
            "--preference=all; name a folder"
        )
    if base and not adapter:
        raise UserError("--base: is only for --adapter: a whole model needs no base")
    if not adapter:
        return
    if not config.get("lora"):
        raise UserError(f"--adapter: {run} has no adapters: its config has no lora")
    if config["sft"] is not None or not config["model"]["path"]:
        base_is = (
            "the result of its supervised stage"
            if config["sft"] is not None
            else "random parameters"
        )
        raise UserError(
            f"--adapter: the base of the adapters of {run} is {base_is}, which is not exported: "
            "export without --adapter, which merges them"
        )
    if dtype:
        raise UserError("--dtype: is not for --adapter: adapters are float32")


def _outputs(run: pathlib.Path) -> tuple[str, ...]:
    """Returns the names of a reward model's outputs."""
    if not (run / "summary.json").is_file():
        raise UserError(f"--workdir: {run} holds an unfinished run: finish it with run")
    return tuple(read_json(run / "summary.json")["reward_model"]["objectives"]) or ("reward",)


def _tokenizer_and_config(
    config: dict[str, Any], run: pathlib.Path, made: pathlib.Path, digest: str
) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Writes the tokenizer's files; returns it and config.json's fields besides the shape.

    Raises:
      UserError: the tokenizer is no longer the one that the run was trained with.
    """
    kept = run / "pretrained"
    tokenizer = _tokenizer_files(config["tokenizer"], run, made)
    if tokenizer.digest != digest:
        path = kept if kept.is_dir() else config["tokenizer"]["path"] or run / "tokenizer.model"
        raise UserError(
            f"{path}: wanted the tokenizer that the run was trained with ({digest[:12]}), found "
            f"another ({tokenizer.digest[:12]}): put it back"
        )
    if kept.is_dir():
        original: dict[str, Any] = read_json(kept / "config.json")
        if (kept / "generation_config.json").is_file():
            sampling = read_json(kept / "generation_config.json")
            write_json(made / "generation_config.json", _with_ends(sampling, tokenizer))
        original = _with_ends(original, tokenizer)
    else:
        data = config["data"]
        original = {
            "bos_token_id": tokenizer.bos_id,
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
            # the longest text in training
            "max_position_embeddings": data["max_prompt_tokens"] + data["max_response_tokens"],
        }
        original = _with_ends(original, tokenizer)
    if not config["loss"]:
        original["pad_token_id"] = _padding(tokenizer)
    return tokenizer, original


def _padding(tokenizer: tokenizers.Tokenizer) -> int | None:
    """Chooses the id that pads a reward model's texts in transformers; None if there is none.

    transformers reads the score at the last token that is not padding, so this cannot be the EOS.
    """
    others = sorted(set(tokenizer.specials.values()) - set(tokenizer.ends))
    if tokenizer.pad_id not in tokenizer.ends:
        return tokenizer.pad_id
    return others[0] if others else None


def _with_ends(content: dict[str, Any], tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """Lists every token that ends a response, so that transformers stops at the same ones."""
    given, ends = content.get("eos_token_id"), sorted(tokenizer.ends)
    if set(given if isinstance(given, list) else [given]) == set(ends):
        return content
    return {**content, "eos_token_id": ends if len(ends) > 1 else ends[0]}


def _tokenizer_files(
    settings: dict[str, Any], run: pathlib.Path, made: pathlib.Path
) -> tokenizers.Tokenizer:
    """Writes the files of the run's tokenizer, and the settings that other tools need."""
    path, tokenizer = _kept_tokenizer(settings, run), tokenizer_of(settings, run)
    if path.is_dir():
        pretrained.copy_tokenizer(path, made)
    else:
        pretrained.copy_files(path.parent, made, (path.name,))
    if settings["chat_template"]:
        (made / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    if not (made / "tokenizer_config.json").is_file():
        write_json(made / "tokenizer_config.json", _tokenizer_config(tokenizer))
    return tokenizer


def _kept_tokenizer(settings: dict[str, Any], run: pathlib.Path) -> pathlib.Path:
    kept = run / "pretrained"
    return kept if kept.is_dir() else pathlib.Path(settings["path"] or run / "tokenizer.model")


def tokenizer_of(settings: dict[str, Any], run: pathlib.Path) -> tokenizers.Tokenizer:
    """Loads a run's tokenizer; ``settings`` is ``tokenizer`` in its ``config.json``."""
    path = str(_kept_tokenizer(settings, run))
    return tokenizers.load(path, chat_template=settings["chat_template"])


def _tokenizer_config(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    return {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_prefix_space": False,
        "add_bos_token": tokenizer.bos_id is not None,
        "add_eos_token": False,
        "chat_template": tokenizer.chat_template,
        **{k: v for k, v in tokenizer.special_tokens.items() if isinstance(v, str)},
    }
