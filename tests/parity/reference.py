"""What transformers says of small random models; needs torch and more, not alignjax.

    python tests/parity/reference.py make FOLDER           models, tokenizers and what they answer
    python tests/parity/reference.py logits MODEL INPUT OUT   what a saved model answers
    python tests/parity/reference.py card MODEL CONVERSATIONS OUT   what the card's code answers
    python tests/parity/reference.py adapted MODEL ADAPTERS INPUT OUT   the same with PEFT adapters;
        for MODEL ``-``, beside the base that the adapters name

`parity_test.py` beside this file compares alignjax with the first's output, which is committed in
``data/``; ``make test-parity`` makes it afresh and uses the second on what alignjax exported.
"""

import json
import os
import pathlib
import re
import sys
from typing import Any

import gguf
import numpy as np
import peft
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SIZES: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_hidden_layers=2,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
LLAMA_3_ROPE = dict(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
GEMMA = dict(
    hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=6, final_logit_softcapping=2.0
)
# Every option of a family, in windows that are shorter than the prompts.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", dict(num_key_value_heads=4, head_dim=4, rms_norm_eps=1e-5)),
    "llama32": (
        "Llama",
        dict(
            rope_parameters=dict(rope_theta=500.0, **LLAMA_3_ROPE),
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
        ),
    ),
    "llama_biases": (
        "Llama",
        dict(
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4),
        ),
    ),
    "mistral": ("Mistral", dict(sliding_window=4)),
    "qwen2": ("Qwen2", dict(head_dim=None)),
    "qwen25_window": (
        "Qwen2",
        dict(
            head_dim=None,
            tie_word_embeddings=True,
            use_sliding_window=True,
            sliding_window=5,
            max_window_layers=0,
        ),
    ),
    "qwen3": ("Qwen3", dict(rope_parameters=dict(rope_theta=1e6, rope_type="default"))),
    "gemma2": (
        "Gemma2",
        dict(**GEMMA, num_hidden_layers=3, sliding_window=3, attn_logit_softcapping=1.5),
    ),
    "gemma3": (
        "Gemma3",
        dict(
            **GEMMA,
            num_hidden_layers=4,
            sliding_window=5,
            sliding_window_pattern=3,
            rope_parameters={
                "full_attention": dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                "sliding_attention": dict(rope_type="default", rope_theta=100.0),
            },
        ),
    ),
}
PROMPT_LENGTHS, RESPONSE_LENGTHS = (9, 1, 5), ((6, 2), (3, 6), (1, 4))
NEW_TOKENS = 8
OUTPUTS = ("helpful", "harmless", "concise")
# A model with a tokenizer, for the way from a folder to an aligned model that is exported.
STORY = ("Qwen2", dict(vocab_size=352, head_dim=None, tie_word_embeddings=True))


def batch(vocab: int) -> dict[str, np.ndarray]:
    """Ragged prompts, padded on the left, with two ragged responses each, padded on the right."""
    rng = np.random.default_rng(0)
    prompt = np.zeros((3, max(PROMPT_LENGTHS)), np.int32)
    response = np.zeros((3, 2, max(map(max, RESPONSE_LENGTHS))), np.int32)
    for i, n in enumerate(PROMPT_LENGTHS):
        prompt[i, -n:] = rng.integers(3, vocab, n)
        for j, m in enumerate(RESPONSE_LENGTHS[i]):
            response[i, j, :m] = rng.integers(3, vocab, m)
    return dict(
        prompt=prompt,
        prompt_length=np.array(PROMPT_LENGTHS, np.int32),
        response=response,
        response_length=np.array(RESPONSE_LENGTHS, np.int32),
    )


def make_model(name: str) -> Any:
    """A model of a family, all its parameters drawn and rounded to bfloat16."""
    kind, options = {**FAMILIES, "story": STORY}[name]
    config_class = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config"))
    sizes = {k: v for k, v in {**SIZES, **options}.items() if v is not None}
    config = config_class(**sizes, attn_implementation="eager", dtype="float32")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    draw(model, name)
    return model


def make_reward_model() -> Any:
    """Mistral with a window and a head of three outputs."""
    sizes = {**SIZES, "sliding_window": 4, "num_labels": 3}
    config = transformers.MistralConfig(**sizes, attn_implementation="eager", dtype="float32")
    config.id2label = dict(enumerate(OUTPUTS))
    model = transformers.MistralForSequenceClassification(config).eval()
    draw(model, "reward")
    return model


# Classifiers by their number of labels: the tokenizer, and the token that config.json pads with.
CLASSIFIERS = {1: ("qwen", "<|im_end|>"), 2: ("llama3", "<|eot_id|>")}


def make_classifiers(folder: pathlib.Path) -> None:
    """Reward models with a tokenizer, and their outputs for dialogues with an answer.

    The first is read at the line break after the turn's end, the second before the end, which pads.
    """
    for labels, (name, padding) in CLASSIFIERS.items():
        tokenizer = make_tokenizer(name)
        index = tokenizer.convert_tokens_to_ids(padding)
        sizes = {**SIZES, **STORY[1], "num_labels": labels, "pad_token_id": index}
        sizes["max_position_embeddings"] = 256
        sizes = {k: v for k, v in sizes.items() if v is not None}
        config = transformers.Qwen2Config(**sizes, attn_implementation="eager", dtype="float32")
        model = transformers.Qwen2ForSequenceClassification(config).eval()
        draw(model, f"labels {labels}")
        made = folder / f"labels{labels}"
        rows = []
        for turns in DIALOGUES:
            for reply in (REPLY, "No."):
                whole = [*turns, {"role": "assistant", "content": reply}]
                ids = tokenizer.apply_chat_template(whole, return_dict=False, return_tensors="pt")
                with torch.no_grad():
                    outputs = model(input_ids=ids).logits[0].tolist()
                rows.append(dict(turns=turns, reply=reply, outputs=outputs))
        model.to(torch.bfloat16).save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / "scores.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


def card(folder: str, conversations: str, out: str) -> None:
    """What the code in a reward model's card answers."""
    code = re.findall(r"^```python\n(.*?)^```$", (pathlib.Path(folder) / "README.md").read_text(),
                      re.M | re.S)  # fmt: skip
    names: dict[str, Any] = {}
    exec("\n".join(code).replace("FOLDER", folder), names)
    found = names["score"](json.loads(pathlib.Path(conversations).read_text()))
    pathlib.Path(out).write_text(json.dumps(found.tolist()))


def draw(model: Any, name: str) -> None:
    """Gives every parameter its values."""
    kind = type(model).__name__
    rng = np.random.default_rng(sum(name.encode()))
    with torch.no_grad():
        for key, value in sorted(model.named_parameters()):
            x = rng.normal(size=tuple(value.shape))
            if value.ndim == 2:
                x *= 1.5 * value.shape[1] ** -0.5
            elif key.endswith("bias"):
                x *= 0.3
            else:  # of a norm
                x = 0.2 * x + (0.0 if kind.startswith("Gemma") else 1.0)
            value.copy_(torch.tensor(x, dtype=torch.bfloat16))


def make_adapted(folder: pathlib.Path, inputs: dict[str, np.ndarray]) -> None:
    """Adapters that PEFT made beside qwen2, and what both answer."""
    names = [f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")]
    lora = peft.LoraConfig(r=3, lora_alpha=6, target_modules=names, task_type="CAUSAL_LM")
    model = peft.get_peft_model(make_model("qwen2"), lora).eval()
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for key, value in sorted(model.named_parameters()):
            if "lora_" in key:
                x = rng.normal(size=tuple(value.shape)) * value.shape[1] ** -0.5
                value.copy_(torch.tensor(x, dtype=torch.bfloat16))
    model.save_pretrained(folder)
    (folder / "README.md").unlink()  # a form to fill in
    np.savez_compressed(folder / "answers.npz", **inputs, **answers(model, inputs))


def whole(inputs: dict[str, np.ndarray]) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """Every prompt with every response in one row, and the place of each token; negative: none."""
    b, k, r = inputs["response"].shape
    p = inputs["prompt"].shape[1]
    prompt = np.repeat(inputs["prompt"], k, axis=0)
    tokens = torch.tensor(np.concatenate([prompt, inputs["response"].reshape(b * k, r)], 1)).long()
    place = np.arange(p + r) - (p - np.repeat(inputs["prompt_length"], k))[:, None]
    ends = np.repeat(inputs["prompt_length"], k) + inputs["response_length"].reshape(-1)
    mask = torch.tensor((place >= 0) & (place < ends[:, None])).long()
    position = torch.tensor(np.maximum(place, 0)).long()
    return dict(input_ids=tokens, attention_mask=mask, position_ids=position), place


def scores(model: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Outputs of a reward model for every response."""
    with torch.no_grad():
        found = model(**whole(inputs)[0]).logits.float().numpy()
    return found.reshape(*inputs["response_length"].shape, -1)


def answers(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits before every response token, summed log-probabilities, greedy continuations."""
    b, k, r = inputs["response"].shape
    p = inputs["prompt"].shape[1]
    given, place = whole(inputs)
    tokens = given["input_ids"]
    with torch.no_grad():
        logits = model(**given).logits.float()[:, p - 1 : -1]
        logps = logits.log_softmax(-1).gather(-1, tokens[:, p:, None])[..., 0]
        real = torch.arange(r) < torch.tensor(inputs["response_length"].reshape(-1, 1))
        greedy = model.generate(
            input_ids=torch.tensor(inputs["prompt"]).long(),
            attention_mask=torch.tensor(place[::k, :p] >= 0).long(),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[:, p:]
    return dict(
        logits=np.where(real[..., None], logits, 0).reshape(b, k, r, -1).astype(np.float32),
        logps=np.where(real, logps, 0).sum(1).reshape(b, k).astype(np.float32),
        greedy=greedy.numpy().astype(np.int32),
    )


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\\n\\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == "
    "'assistant' else m['role']) + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
CORPUS = [
    "How can I move an old mirror on a tight budget? First make a plan, then do one part a time.",
    "Tell me, please: what's 12 + 345? It's 357. Grüße aus Köln! \n\n  indented\tand tabbed",
] * 4
TOKENIZERS: dict[str, dict[str, Any]] = {
    "llama3": dict(
        template=HEADERS,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        more=["<|start_header_id|>", "<|end_header_id|>"],
    ),
    "qwen": dict(template=CHATML, bos=None, eos="<|im_end|>", more=["<|im_start|>"]),
    "mistral": dict(template=INST, bos="<s>", eos="</s>", more=["<unk>"]),
    "gemma": dict(
        template=TURNS, bos="<bos>", eos="<eos>", more=["<unk>", "<start_of_turn>", "<end_of_turn>"]
    ),
}
TEXTS = [
    "Hello there.",
    " leading space and trailing ",
    "Two\nlines, 1234567 numbers; don't!",
    "Unseen: 語 🙂 é\u0301",
    "",
]
DIALOGUES = [
    [{"role": "user", "content": "How do I move a mirror?"}],
    [
        {"role": "user", "content": "  Please plan.  "},
        {"role": "assistant", "content": "First,\nmake a plan."},
        {"role": "user", "content": "What's next? 語"},
    ],
]
REPLY = "Then do one part."


def make_tokenizer(name: str) -> Any:
    """Byte-level as Llama 3's and Qwen's, or with spaces as pieces as Mistral's and Gemma's."""
    own = TOKENIZERS[name]
    special = [x for x in (own["bos"], own["eos"], *own["more"]) if x]
    if name in ("llama3", "qwen"):
        tokenizer = tokenizers.Tokenizer(models.BPE())
        # transformers splits Qwen's words by a rule of its own, whatever the file says: this one.
        digits = r"\p{N}" if name == "qwen" else r"\p{N}{1,3}"
        words = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + "|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        if name == "qwen":
            tokenizer.normalizer = normalizers.NFC()
        split = pre_tokenizers.Split(tokenizers.Regex(words), "isolated")
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = tokenizers.Tokenizer(
            models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        )
        spaces = normalizers.Replace(" ", "▁")
        prefix = [normalizers.Prepend("▁")] if name == "mistral" else []
        tokenizer.normalizer = normalizers.Sequence([*prefix, spaces])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        strip = [decoders.Strip(" ", 1, 0)] if name == "mistral" else []
        tokenizer.decoder = decoders.Sequence([*steps, *strip])
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + len(special) + 60,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if name not in ("llama3", "qwen"):  # bytes are pieces like any other
        settings = json.loads(tokenizer.to_str())
        settings["added_tokens"] = [
            t for t in settings["added_tokens"] if "<0x" not in t["content"]
        ]
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(settings))
    if own["bos"]:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{own['bos']} $A",
            special_tokens=[(own["bos"], tokenizer.token_to_id(own["bos"]))],
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=own["bos"],
        eos_token=own["eos"],
        chat_template=own["template"],
        clean_up_tokenization_spaces=False,
    )


def tokenizer_answers(tokenizer: Any) -> dict[str, Any]:
    """Ids of texts, and dialogues rendered and as ids, with a reply's ids after them."""
    dialogues = []
    for turns in DIALOGUES:
        whole = [*turns, {"role": "assistant", "content": REPLY}]
        render = tokenizer.apply_chat_template
        before = render(turns, tokenize=False, add_generation_prompt=True)
        after = render(whole, tokenize=False)
        ids = render(turns, add_generation_prompt=True, return_dict=False)
        both = render(whole, return_dict=False)
        dialogues.append(dict(turns=turns, rendered=before, whole=after, ids=ids, whole_ids=both))
    texts = [dict(text=text, ids=tokenizer(text)["input_ids"]) for text in TEXTS]
    return dict(texts=texts, dialogues=dialogues, reply=REPLY)


def make(folder: pathlib.Path) -> None:
    """Writes every model and tokenizer with what it answers."""
    reward, inputs = make_reward_model(), batch(SIZES["vocab_size"])
    found = scores(reward, inputs)
    reward.to(torch.bfloat16).save_pretrained(folder / "reward")
    np.savez_compressed(folder / "reward" / "scores.npz", **inputs, scores=found)
    make_adapted(folder / "peft", inputs)
    make_classifiers(folder)
    make_ggufs(folder / "gguf")
    make_model("story").to(torch.bfloat16).save_pretrained(folder / "story")
    for name in FAMILIES:
        model = make_model(name)
        inputs = batch(model.config.vocab_size)
        found = answers(model, inputs)
        model.to(torch.bfloat16).save_pretrained(folder / name)
        np.savez_compressed(folder / name / "answers.npz", **inputs, **found)
    for name in TOKENIZERS:
        tokenizer = make_tokenizer(name)
        tokenizer.save_pretrained(folder / "tokenizers" / name)
        file = folder / "tokenizers" / name / "tokenizer.json"  # as compact as it can be
        file.write_text(json.dumps(json.loads(file.read_text()), ensure_ascii=False))
        if name == "qwen":
            tokenizer.save_pretrained(folder / "story")
        text = json.dumps(tokenizer_answers(tokenizer), ensure_ascii=False, indent=1)
        (folder / "tokenizers" / name / "answers.json").write_text(text + "\n")


# Of GGUF files: sizes that blocks of 32 weights divide.
GGUF: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", dict(vocab_size=300, hidden_size=32, intermediate_size=64)),
    "gemma2": (
        "Gemma2",
        dict(
            hidden_size=32,
            intermediate_size=64,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=256,
            sliding_window=3,
        ),
    ),
}
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_gguf(name: str, file: pathlib.Path) -> None:
    """Writes a random model as llama.cpp's converter does, quantised in several ways."""
    kind, options = GGUF[name]
    sizes = {**SIZES, **options}
    model = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**sizes, attn_implementation="eager")
    ).eval()
    draw(model, name)
    writer = gguf.GGUFWriter(str(file), name)
    writer.add_context_length(sizes["max_position_embeddings"])
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(sizes["vocab_size"])
    if name == "llama":
        writer.add_rope_dimension_count(sizes["head_dim"])
        add_tokenizer(writer, sizes["vocab_size"])
    else:
        writer.add_key_length(sizes["head_dim"])
        writer.add_value_length(sizes["head_dim"])
        writer.add_sliding_window(sizes["sliding_window"])
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == name)
    names = gguf.get_tensor_name_map(arch, sizes["num_hidden_layers"])
    types = gguf.GGMLQuantizationType
    for i, (key, value) in enumerate(model.state_dict().items()):
        stem, suffix = key.rsplit(".", 1)
        own = names.get_name(stem)
        if own is None or (key == "lm_head.weight" and model.config.tie_word_embeddings):
            continue
        x = value.float().numpy()
        if name == "llama" and (".q_proj" in key or ".k_proj" in key):
            heads = sizes["num_attention_heads" if ".q_" in key else "num_key_value_heads"]
            x = x.reshape(heads, 2, len(x) // heads // 2, -1).swapaxes(1, 2).reshape(x.shape)
        x = x + 1 if name == "gemma2" and "norm" in key else x
        how = (types.Q8_0, types.Q4_1, types.F16, types.Q5_0)[i % 4] if x.ndim > 1 else types.F32
        packed = gguf.quantize(np.ascontiguousarray(x), how)
        writer.add_tensor(f"{own}.{suffix}", packed, raw_dtype=how)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: Any, size: int) -> None:
    """A byte-level vocabulary with a few merges, special tokens and a template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["l l", "h e", "he ll", "hell o", "\u0120 t", "1 2", "i n", "in g", "o n", "e r"]
    joined = [merge.replace(" ", "") for merge in merges]
    tokens = [*WORDS, *alphabet, *joined, "<think>"]
    tokens += [f"<unused{i}>" for i in range(size - len(tokens))]
    kinds = [3] * len(WORDS) + [1] * (len(alphabet) + len(joined)) + [4]
    kinds += [5] * (size - len(kinds))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHATML)


def make_ggufs(folder: pathlib.Path) -> None:
    """Writes GGUF files with what transformers reads from them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in GGUF:
        make_gguf(name, folder / f"{name}.gguf")
        read = dict(gguf_file=f"{name}.gguf", dtype=torch.float32)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", **read
        ).eval()
        inputs = batch(model.config.vocab_size)
        np.savez_compressed(folder / f"{name}.npz", **inputs, **answers(model, inputs))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="llama.gguf")
    texts = ["hello, telling 1234 things", " <think>ok", "no <|im_end|>"]
    ids = [dict(text=text, ids=tokenizer(text)["input_ids"]) for text in texts]
    rendered = tokenizer.apply_chat_template(
        DIALOGUES[1], tokenize=False, add_generation_prompt=True
    )
    found = dict(texts=ids, turns=DIALOGUES[1], rendered=rendered)
    (folder / "tokenizer.json").write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n")


def logits(model_folder: str, inputs: str, out: str) -> None:
    """Answers of a saved model, in fp32, and its tokenizer's if it has one."""
    with np.load(inputs) as opened:
        given = {key: opened[key] for key in batch(64)}
    options = dict(dtype="float32", attn_implementation="eager")
    file = {}
    if model_folder.endswith(".gguf"):
        model_folder, name = os.path.split(model_folder)
        file = dict(gguf_file=name)
        options |= file
    config = transformers.AutoConfig.from_pretrained(model_folder, **file)
    if not file and config.architectures[0].endswith("ForSequenceClassification"):
        kind: Any = transformers.AutoModelForSequenceClassification
        model = kind.from_pretrained(model_folder, **options).eval()
        names = [config.id2label[i] for i in range(config.num_labels)]
        np.savez_compressed(out, scores=scores(model, given), names=names)
        return
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, **options).eval()
    np.savez_compressed(out, **answers(model, given))
    if file or (pathlib.Path(model_folder) / "tokenizer_config.json").is_file():
        write_tokenizer_answers(model_folder, out, **file)


def write_tokenizer_answers(folder: str, out: str, **file: str) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **file)
    text = json.dumps(tokenizer_answers(tokenizer), ensure_ascii=False)
    pathlib.Path(out + ".json").write_text(text)


def adapted(model_folder: str, adapters: str, inputs: str, out: str) -> None:
    """Answers of a base with adapters that PEFT loads, beside the base and merged into it."""
    with np.load(inputs) as opened:
        given = {key: opened[key] for key in batch(64)}
    options = dict(dtype="float32", attn_implementation="eager")
    kind: Any = transformers.AutoModelForCausalLM
    told = json.loads((pathlib.Path(adapters) / "adapter_config.json").read_text())
    ask = answers
    if told["task_type"] == "SEQ_CLS":
        kind = transformers.AutoModelForSequenceClassification
        options |= dict(num_labels=1)
        ask = lambda model, given: dict(scores=scores(model, given))  # noqa: E731
    if model_folder == "-":
        auto: Any = getattr(peft, f"AutoPeft{kind.__name__.removeprefix('Auto')}")
        model = auto.from_pretrained(adapters, **options)
        if (pathlib.Path(adapters) / "tokenizer_config.json").is_file():
            write_tokenizer_answers(adapters, out)
    else:
        base = kind.from_pretrained(model_folder, **options)
        model = peft.PeftModel.from_pretrained(base, adapters)
    beside = ask(model.eval(), given)
    merged = ask(model.merge_and_unload().eval(), given)
    merged = {f"merged_{name}": value for name, value in merged.items()}
    np.savez_compressed(out, **beside, **merged)


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"] and len(sys.argv) == 3:
        make(pathlib.Path(sys.argv[2]))
    elif sys.argv[1:2] == ["logits"] and len(sys.argv) == 5:
        logits(*sys.argv[2:])
    elif sys.argv[1:2] == ["card"] and len(sys.argv) == 5:
        card(*sys.argv[2:])
    elif sys.argv[1:2] == ["adapted"] and len(sys.argv) == 6:
        adapted(*sys.argv[2:])
    else:
        raise SystemExit(__doc__)
