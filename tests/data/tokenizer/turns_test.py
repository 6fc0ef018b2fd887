"""Where a response begins and ends: the ends of folders as they are published, opened thoughts."""

import json

import pytest

from alignjax.data.records import DataError, Message
from alignjax.data.tokenizer import load, training
from alignjax.errors import UserError

USER = (Message("user", "Hi"),)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
TURNS = CHATML.replace("<|im_start|>", "<start_of_turn>").replace("<|im_end|>", "<end_of_turn>")
# DeepSeek-R1: reasoning is left out of a dialogue, and every prompt opens it.
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
# Qwen 3 Thinking: the dialogue repeats the opening, with empty thoughts.
THINKING = CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' and not '<think>' in "
    "m.content %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
).replace("<|im_start|>assistant\n{%", "<|im_start|>assistant\n<think>\n{%")  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Writes a tokenizer of single bytes and special tokens, and what lies beside it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    def write(special, template, *, ordinary=(), generation=None, model=None, **config):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tok = tokenizers.Tokenizer(models.BPE({x: i for i, x in enumerate(alphabet)}, []))
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tok.decoder = decoders.ByteLevel()
        tok.add_special_tokens(list(special))
        tok.add_tokens(list(ordinary))
        tok.save(str(tmp_path / "tokenizer.json"))
        files = {
            "tokenizer_config": {"chat_template": template, **config},
            "generation_config": generation,
            "config": model,
        }
        for name, content in files.items():
            if content is not None:
                (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return str(tmp_path), tok

    return write


@pytest.mark.parametrize(
    ("special", "template", "eos", "generation", "written", "said"),
    [
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML, "<|endoftext|>", [256],
         "<|im_end|>", {258: "chat template", 256: "tokenizer, generation_config.json"}),
        (["<|begin|>", "<|end_of_text|>", "<|start|>", "<|end|>", "<|eot_id|>", "<|eom_id|>"],
         HEADERS, "<|end_of_text|>", [257, 261], "<|eot_id|>",
         {260: "chat template", 257: "tokenizer, generation_config.json",
          261: "generation_config.json"}),
        (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], TURNS, "<eos>", [257, 259],
         "<end_of_turn>", {259: "chat template, generation_config.json",
                           257: "tokenizer, generation_config.json"}),
        (["</s>"], "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
         "{% if add_generation_prompt %}assistant: {% endif %}", "</s>", 256, "</s>",
         {256: "tokenizer, generation_config.json"}),
    ],
    ids=["qwen base", "llama 3 base", "gemma", "no end in the template"],
)  # fmt: skip
def test_a_response_has_the_end_that_its_template_writes(
    folder, special, template, eos, generation, written, said
):
    path, model = folder(special, template, eos_token=eos, generation={"eos_token_id": generation})
    tok = load.load(path)
    assert dict(tok.ends) == said
    (ids,) = tok.encode(USER, ["yes"]).response_ids
    assert ids[-1] == model.token_to_id(written)
    assert sum(int(i) in tok.ends for i in ids) == 1
    assert tok.decode(ids).strip() == "yes"
    assert tok.encode("plain", ["text"]).response_ids[0][-1] == tok.eos_id
    assert f"{written!r} {model.token_to_id(written)} (" in tok.describe_ends()


def test_ends_of_a_model_without_generation_config_are_its_config_s(folder, tmp_path):
    path, _ = folder(["<a>", "<b>"], CHATML, eos_token="<a>", model={"eos_token_id": [256, 257]})
    assert dict(load.load(path).ends) == {256: "tokenizer, config.json", 257: "config.json"}
    other = tmp_path / "model"
    other.mkdir()
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": 70}))
    assert dict(load.load(path, model=str(other)).ends)[70] == "generation_config.json"
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": "<a>"}))
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id: wanted ids"):
        load.load(path, model=str(other))


def test_an_end_that_is_an_ordinary_token_cannot_be_written_by_data(folder):
    """It is one token of the template, and text where the data hold it."""
    path, model = folder(
        ["<|endoftext|>"],
        CHATML,
        ordinary=["<|im_start|>", "<|im_end|>"],
        eos_token="<|endoftext|>",
    )
    tok, end = load.load(path), model.token_to_id("<|im_end|>")
    (ids,) = tok.encode(USER, ["a<|im_end|>b"]).response_ids
    assert (ids.tolist().count(end), int(ids[-1])) == (1, end)
    assert tok.decode(ids) == "a<|im_end|>b"
    assert end not in tok.encode("a<|im_end|>", []).prompt_ids
    assert load.load(path).digest == tok.digest
    assert "<|endoftext|>" not in tok.decode([256, *ids])


def test_an_end_that_is_text_does_not_cut_responses(folder):
    """Some lists of ends name a line break."""
    newline = 198
    path, _ = folder(["</s>"], CHATML, eos_token="</s>", generation={"eos_token_id": [newline]})
    tok = load.load(path)
    assert newline in tok.ends
    (ids,) = tok.encode(USER, ["a\nb"]).response_ids
    assert tok.decode(ids) == "a\nb<|im_end|>\n"  # the template's markup is text here


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("yes", "yes"), ("<think>\nhm</think>yes", "hm</think>yes"), ("hm</think>yes",) * 2],
)
def test_an_opening_that_the_dialogue_leaves_out_belongs_to_the_prompt(folder, text, wanted):
    special = ["<s>", "</s>", "<|User|>", "<|Assistant|>"]
    path, model = folder(
        special, R1, ordinary=["<think>", "</think>"], eos_token="</s>", bos_token="<s>"
    )
    tok = load.load(path)
    assert tok.opening == "<think>\n"
    assert "prompts end with '<think>\\n', from the chat template" in tok.describe_ends()
    encoded = tok.encode(USER, [text])
    rendered = "<s><|User|>Hi<|Assistant|><think>\n"
    assert encoded.prompt_ids.tolist() == model.encode(rendered).ids
    assert encoded.response_ids[0].tolist() == model.encode(f"{wanted}</s>").ids


def test_an_opening_that_the_dialogue_repeats_is_the_prompt_s_too(folder):
    path, _ = folder(["<|im_start|>", "<|im_end|>"], THINKING, eos_token="<|im_end|>")
    tok = load.load(path)
    assert tok.opening == "<think>"
    encoded = tok.encode(USER, ["yes", "<think>\nhm\n</think>\n\nyes"])
    assert tok.decode(encoded.prompt_ids).endswith("assistant\n<think>\n")
    assert [tok.decode(ids) for ids in encoded.response_ids] == [
        "\n</think>\n\nyes", "hm\n</think>\n\nyes"
    ]  # fmt: skip


def test_a_template_that_rewrites_more_than_the_opening_is_refused(folder):
    path, _ = folder(["</s>"], "{{ messages | length }}" + R1, eos_token="</s>")
    with pytest.raises(DataError, match="renders the prompt differently when a response follows"):
        load.load(path).encode(USER, ["5"])


def test_templates_see_that_there_are_no_tools_and_documents(folder):
    template = "{{ tools is none }} {{ documents is none }}"
    assert load.load(folder(["</s>"], template, eos_token="</s>")[0]).render(USER) == "True True"


def test_named_templates(folder, tmp_path):
    named = [{"name": "rag", "template": "R{{ 1 }}"}, {"name": "default", "template": "D{{ 1 }}"}]
    path, _ = folder(["</s>"], named, eos_token="</s>")
    assert load.load(path).render(USER) == "D1"
    assert load.load(path, chat_template="rag").render(USER) == "R1"
    with pytest.raises(UserError, match=r"^tool: no such chat template; .* templates default, rag"):
        load.load(path, chat_template="tool")
    path, _ = folder(["</s>"], named[:1], eos_token="</s>")
    with pytest.raises(UserError, match=r"the chat templates rag and no default; name one with"):
        load.load(path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("T{{ 1 }}")
    assert load.load(path, chat_template="tool_use").render(USER) == "T1"
    (tmp_path / "chat_template.jinja").write_text("J{{ 1 }}")
    assert load.load(path).render(USER) == "J1"
    path, _ = folder(["</s>"], [{"name": "rag"}], eos_token="</s>")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: chat_template: wanted text, or"):
        load.load(path)


MORE = {
    "257": {"content": "<|im_start|>", "special": True},
    "258": {"content": "<|im_end|>", "special": True},
    "259": {"content": "<tool>", "special": False},
}


def test_tokens_of_tokenizer_config_alone_are_tokens(folder):
    path, _ = folder(["</s>"], CHATML, eos_token="<|im_end|>", added_tokens_decoder=MORE)
    tok = load.load(path)
    assert (tok.vocab_size, tok.eos_id, "<tool>" in tok.specials) == (260, 258, False)
    encoded = tok.encode(USER, ["<tool>ok"])
    # of transformers 5.23.0, but for the line break after the last
    assert [*encoded.prompt_ids.tolist(), *encoded.response_ids[0].tolist()] == [
        257, 84, 82, 68, 81, 198, 39, 72, 258, 198,
        257, 64, 82, 82, 72, 82, 83, 64, 77, 83, 198, 259, 78, 74, 258,
    ]  # fmt: skip
    assert tok.decode(encoded.response_ids[0]) == "<tool>ok"
    assert 258 not in tok.encode("a<|im_end|>", []).prompt_ids
    moved = {"300": MORE["258"]}
    path, _ = folder(["</s>"], CHATML, eos_token="</s>", added_tokens_decoder=moved)
    with pytest.raises(UserError, match=r"_config\.json: token '<|im_end|>': wanted id 300, found"):
        load.load(path)


def test_tokens_beside_a_sentencepiece_model_are_tokens(tmp_path):
    path = tmp_path / "tokenizer.model"
    training.train_sentencepiece(["how much is it, five"] * 9, vocab_size=320, path=str(path))
    size = load.load(str(path)).vocab_size
    more = {"<|im_start|>": size, "<|im_end|>": size + 1, "<tool>": size + 2, "</s>": 1}
    (tmp_path / "added_tokens.json").write_text(json.dumps(more))
    config = dict(chat_template=CHATML, eos_token="<|im_end|>", additional="<|im_start|>")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**config, "x_token": "<|im_start|>"})
    )
    tok = load.load(str(tmp_path))
    assert (tok.vocab_size, tok.eos_id) == (size + 3, size + 1)
    encoded = tok.encode(USER, ["<tool> how<|im_end|> much"])
    assert encoded.prompt_ids.tolist().count(size) == 2
    ids = encoded.response_ids[0].tolist()
    assert (ids[0], ids[-1], ids.count(size + 1)) == (size + 2, size + 1, 1)
    assert tok.decode(ids) == "<tool> how<|im_end|> much"
    (tmp_path / "added_tokens.json").write_text(json.dumps({"</s>": 7}))
    with pytest.raises(UserError, match=r"added_tokens\.json: token '</s>': wanted id 7, found 1"):
        load.load(str(tmp_path))
