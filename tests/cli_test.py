"""Bad input through the command line: one line, its exit code, and before anything is compiled.

Most of it in this process; that `main` makes one line of an error is tested with whole programs.
"""

import errno
import gzip
import json
import re
import subprocess
import sys

import pytest
from absl import flags

from alignjax import cli
from alignjax.errors import UserError
from tests import runs

# A config for pairs in files; the model and everything else as in `runs`.
FILES = """
    import dataclasses
    from functools import partial
    from alignjax.data import sources
    from tests import runs

    def get_config():
        config = runs.get_config()
        data = dataclasses.replace(config.data, source=sources.trl, max_drop_fraction=0.3)
        return dataclasses.replace(config, data=data, sft=None)
"""


def one_line(done, code=2):
    """The last line on standard error, which is the only one of ours that tells of an error."""
    lines = [x for x in done.stderr.splitlines() if x.strip()]
    assert done.returncode == code, (done.returncode, done.stderr[-3000:])
    assert "Traceback" not in done.stderr
    assert sum(x.startswith("alignjax: ") for x in lines) == 1, done.stderr
    assert "━" not in done.stderr, "a progress bar: something was trained or scored"
    return lines[-1]


def fails(*arguments, message):
    line = runs.refused(*arguments)
    assert re.search(message, line), line


# --- verbs and flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["rnu"],
            r"no command .rnu. \(did you mean 'run'\?\); commands: run, demo, generate, chat, ",
        ),
        (["run", "demo"], r"wanted one command"),
        (["run"], r"run requires --config, e\.g\. --config="),
        (["import", "--from=x"], r"import requires --to, e\.g\. --from="),
        (
            ["import", "--from=none", "--to=y"],
            r"none/config\.json: no such file \(no folder",
        ),
        (
            ["export", "--workdir=none", "--to=y"],
            r"--workdir: none holds no run \(no config",
        ),
        (["run", f"--config={runs.__file__}"], r"run requires --workdir, e\.g\. --config="),
        (["score", "--records=a.jsonl"], r"score requires --reward_model, e.g. --records="),
        (["run", "--confg=x.py"], r"Unknown command line flag 'confg'\. Did you mean: config"),
        (["describe", "--config=configs/demo/dop.py"], r"no file .*dop\.py \(did you mean '"),
        (["describe", f"--config={runs.__file__}", "--set=loss.betta=1"], r"did you mean 'beta'"),
        (["describe", f"--config={runs.__file__}", "--set=train.steps=1.5"], r"wanted int"),
    ],
)
def test_a_wrong_command_is_refused(arguments, message):
    fails(*arguments, message=message)


def test_programs_tell_an_error_in_one_line(files):
    """One of a flag, one of ours, and one from the depth of a run."""
    bad = files("d.jsonl", b"hello\n")
    for arguments in (["run", "--confg=x.py"], ["describe", "--config=none.py"], bad):
        line = one_line(runs.start(*arguments))
        with pytest.raises((UserError, flags.Error)) as caught:
            runs.here(*arguments)
        assert line == f"alignjax: {caught.value}"


def test_describe_prints_the_config_as_json(capsys):
    assert runs.here("describe", f"--config={runs.__file__}", "--set=loss.beta=0.25") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["loss"] == {"function": "alignjax.losses.dpo.loss", "beta": 0.25}
    assert told.err == ""


def test_a_config_with_a_syntax_error_names_file_and_line(tmp_path):
    path = runs.write(tmp_path / "c.py", "x = 1\n\ndef get_config(:\n")
    fails("describe", f"--config={path}", message=r"--config: .*c\.py:3: SyntaxError")


def test_a_loss_keyword_in_a_config_file_is_checked(tmp_path):
    path = runs.write(
        tmp_path / "c.py",
        """
        from functools import partial
        from alignjax.losses import dpo
        from tests import runs

        def get_config():
            return runs.get_config(loss=partial(dpo.loss, label_smothing=0.1))
        """,
    )
    message = r"loss\.label_smothing: .*dpo\.loss takes no such keyword \(did you mean 'label_smoo"
    fails("run", f"--config={path}", f"--workdir={tmp_path / 'w'}", message=message)
    assert not (tmp_path / "w").exists()


# --- data


def good(i):
    return {"prompt": f"Question {i}?", "chosen": f" Yes, {i}.", "rejected": f" No, not {i}."}


def rows(count=40):
    return [json.dumps(good(i)) for i in range(count)]


BAD_DATA = {
    "truncated gzip": (
        "d.jsonl.gz", lambda: gzip.compress("\n".join(rows()).encode())[:-20],
        r"d\.jsonl\.gz: .*(ends early|truncated)",
    ),
    "no gzip": ("d.jsonl.gz", lambda: b"not compressed", r"d\.jsonl\.gz: "),
    "invalid UTF-8": (
        "d.jsonl", lambda: "\n".join(rows()[:2]).encode() + b'\n{"prompt": "\xff"}\n',
        r"d\.jsonl:3: .*byte",
    ),
    "JSON that ends early": (
        "d.jsonl", lambda: "\n".join(rows())[:-9].encode(), r"d\.jsonl:40: JSON ends early",
    ),
    "no JSON": ("d.jsonl", lambda: b"hello\n", r"d\.jsonl:1: "),
    "missing field": (
        "d.jsonl", lambda: "\n".join([*rows()[:4], '{"prompt": "a", "chosen": " b"}']).encode(),
        r"d\.jsonl:5: .*'rejected'",
    ),
    "null field": (
        "d.jsonl",
        lambda: "\n".join([*rows()[:4], json.dumps({**good(9), "chosen": None})]).encode(),
        r"d\.jsonl:5: .*'chosen'",
    ),
    "wrong type": (
        "d.jsonl",
        lambda: "\n".join([*rows()[:4], json.dumps({**good(9), "chosen": 3})]).encode(),
        r"d\.jsonl:5: .*'chosen'.*",
    ),
    "empty file": ("d.jsonl", lambda: b"", r"d\.jsonl"),
}  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """Arguments of a run on a file of pairs, and where the file belongs."""
    config = runs.write(tmp_path / "files.py", FILES)

    def arguments(name="d.jsonl", content=None, *overrides):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        sets = [f"--set={x}" for x in (f"data.path={tmp_path / name}", *overrides)]
        return ["run", f"--config={config}", f"--workdir={tmp_path / 'w'}", *sets]

    return arguments


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_names_file_and_line(case, files):
    name, content, message = BAD_DATA[case]
    fails(*files(name, content()), message=message)


def test_a_missing_data_file_is_named(files):
    fails(*files("nowhere.jsonl"), message=r"nowhere\.jsonl")


def test_a_source_of_files_wants_a_path_and_a_generator_wants_none(tmp_path, files):
    arguments = [x for x in files() if "data.path" not in x]
    fails(*arguments, message=r"data\.path: auto reads files; name one")
    fails(
        *runs.run_arguments(tmp_path / "v", "data.path=x.jsonl"),
        message=r"data\.path: pairs reads no file, found 'x\.jsonl'",
    )


def with_faulty_rows(count):
    bad = [{**good(100 + i), "chosen": ""} for i in range(count)]
    same = {**good(200), "rejected": good(200)["chosen"]}
    return "\n".join([*rows(), *map(json.dumps, [*bad, same])]).encode()


def test_too_many_dropped_rows_stop_the_run_and_are_in_the_data_report(files, tmp_path):
    arguments = files("d.jsonl", with_faulty_rows(9), "data.max_drop_fraction=0.1")
    message = (
        r"10 of \d+ rows dropped \(.*%\), more than data\.max_drop_fraction = 0\.1 allows: "
        r"empty_response 9 \(.*41.*\), identical_pair 1 \("
    )
    fails(*arguments, message=message)
    report = json.loads((tmp_path / "w" / "data_report.json").read_text())
    assert report["train"]["dropped"] == {"empty_response": 9, "identical_pair": 1}
    assert report["train"]["rows_in"] == 50
    assert len(report["train"]["ids"]["empty_response"]) == 3


def test_a_mended_config_goes_on_in_the_same_folder(files, tmp_path):
    """What failed before it trained binds nothing: the config of the folder is the new one."""
    arguments = files("d.jsonl", with_faulty_rows(9), "data.max_drop_fraction=0.1")
    fails(*arguments, message="rows dropped")
    mended = [x.replace("=0.1", "=0.3") for x in arguments]
    # Still wrong, further on: what is refused is no longer the change.
    fails(*mended, "--set=model.vocab_size=16", message=r"model\.vocab_size: ")
    kept = json.loads((tmp_path / "w" / "config.json").read_text())
    assert kept["data"]["max_drop_fraction"] == 0.3


def test_a_tokenizer_larger_than_the_embedding_is_refused(files):
    message = r"model\.vocab_size: the tokenizer .* has \d+ ids, the model embeds 16"
    arguments = files("d.jsonl", "\n".join(rows()).encode(), "model.vocab_size=16")
    fails(*arguments, message=message)


def test_a_tokenizer_that_cannot_be_read_is_named(files, tmp_path):
    (tmp_path / "t.model").write_bytes(b"no model")
    path = f"tokenizer.path={tmp_path / 't.model'}"
    fails(*files("d.jsonl", "\n".join(rows()).encode(), path), message=r"t\.model")


def test_a_mesh_larger_than_the_machine_is_refused(tmp_path):
    sizes = (f"{part}.batch_size=16" for part in ("sft", "train", "evaluate"))
    fails(
        *runs.run_arguments(tmp_path / "w", "mesh.fsdp=16", *sizes),
        message=r"mesh: data=1 x fsdp=16 x tensor=1 needs 16 devices, found 8 \(cpu\)",
    )


def test_a_mesh_that_does_not_divide_the_model_is_refused(tmp_path):
    fails(
        *runs.run_arguments(tmp_path / "w", "mesh.tensor=2", "model.mlp_width=63"),
        message=r"mesh\.tensor=2 does not divide 63, a dimension of ",
    )


def test_a_loss_that_does_not_fit_the_data_is_refused(tmp_path):
    path = runs.write(
        tmp_path / "c.py",
        """
        import dataclasses
        from functools import partial
        from alignjax.world import sources as world
        from tests import runs

        def get_config():
            config = runs.get_config()
            source = partial(world.lists, size=60, seed=0, responses=4)
            return dataclasses.replace(config, data=dataclasses.replace(config.data, source=source))
        """,
    )
    fails(
        "run",
        f"--config={path}",
        f"--workdir={tmp_path / 'w'}",
        message=r"loss: .*dpo\.loss on this data: .*K=4: set `select`",
    )
    fails(
        *runs.run_arguments(tmp_path / "v", "reference.mode=none"),
        message=r"loss: .*dpo\.loss on this data: .*reference\.mode",
    )


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    fails(*runs.run_arguments(tmp_path / "file" / "w"), message=r"--workdir: .*file/w cannot be wr")


def test_data_shows_the_report_and_trains_nothing(tmp_path, files):
    _, config, _, *sets = files("d.jsonl", with_faulty_rows(1))
    done = runs.start("data", config, *sets)
    assert done.returncode == 0, done.stderr
    assert re.search(r"dropped empty_response +1 ", done.stderr)
    assert re.search(r"dropped identical_pair +1 ", done.stderr)
    assert "Question" in done.stdout
    assert not (tmp_path / "w").exists()


# --- control


def test_the_check_sees_tracebacks_and_second_lines():
    class Done:
        returncode = 2
        stderr = "Traceback (most recent call last)\nalignjax: x\n"

    with pytest.raises(AssertionError):
        one_line(Done)
    Done.stderr = "alignjax: x\nalignjax: y\n"
    with pytest.raises(AssertionError):
        one_line(Done)
    Done.stderr = "supervised ━━━ 1/3\nalignjax: x\n"
    with pytest.raises(AssertionError):
        one_line(Done)
    Done.stderr = "alignjax: x\n"
    assert one_line(Done) == "alignjax: x"


# --- errors of a full disk


def _write_nothing(how, path):
    """Writes to a device that is always full, as a library may that names no file."""
    if how == "pathlib":
        path.write_bytes(b"x" * 99)
    else:
        with open(path, "wb", buffering=4096 if how == "buffered" else 0) as file:
            file.write(b"x" * 99)


@pytest.mark.parametrize("how", ["pathlib", "buffered", "unbuffered"])
def test_a_full_disk_s_line_names_the_file_that_was_open(how, tmp_path):
    path = tmp_path / "results"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        _write_nothing(how, path)
    assert caught.value.filename is None
    line = f"{path}: cannot be written: No space left on device"
    assert cli.full_disk(caught.value) == line


def test_a_full_disk_is_told_by_whichever_library_met_it():
    assert cli.full_disk(OSError(errno.ENOSPC, "x", "/w/a")) == "/w/a: cannot be written: x"
    native = RuntimeError("Failed to finalize:\nwrite() failed: No space left on device; at /w/b")
    line = "cannot be written: Failed to finalize: write() failed: No space left on device; at /w/b"
    assert cli.full_disk(native) == line
    wrapped = ValueError("no rows")
    wrapped.__cause__ = native
    assert cli.full_disk(wrapped) == line
    assert cli.full_disk(ValueError("No such file or directory")) == ""
    assert cli.full_disk(OSError(errno.ENOENT, "No such file or directory")) == ""


def test_outside_the_environment_one_line_says_what_to_do():
    bare = [sys.executable, "-S", "-m", "alignjax", "run"]  # -S: no installed packages
    done = subprocess.run(bare, cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "has no package absl: run `make setup`" in line


def test_ctrl_c_is_answered_in_one_line(tmp_path):
    config = runs.write(tmp_path / "config.py", "def get_config():\n    raise KeyboardInterrupt\n")
    done = runs.start("describe", f"--config={config}")
    assert done.returncode == 130
    assert done.stderr == (
        "alignjax: stopping after the current computation; run the same command again to resume\n"
    )
