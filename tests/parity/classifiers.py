"""Makes small classifiers of architectures that do not run in JAX, and their scores; needs torch.

    python classifiers.py FOLDER

A folder for each, with random weights, and in ``scores.json`` the logits of every text, each alone
in its batch.
"""

import json
import pathlib
import sys

import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors, trainers

PROMPTS = ["Is it far?", "How do I move a mirror across a long and narrow room?"]
RESPONSES = [["No.", "It is not far at all, a short walk."], ["First make a plan.", "No idea."]]
LONGEST = 24


def tokenizer(pair: bool) -> transformers.PreTrainedTokenizerFast:
    """A word-level tokenizer; ``pair``: with marks around the two texts."""
    core = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    texts = [*PROMPTS, *(y for some in RESPONSES for y in some), "user : assistant"]
    core.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    marks = {"pad_token": "[PAD]"}  # which GPT-2's config does not have
    if pair:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        marks |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", model_max_length=LONGEST, **marks
    )


def main(folder: pathlib.Path) -> None:
    torch.manual_seed(0)
    pair, single = tokenizer(True), tokenizer(False)
    single.chat_template = (
        "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    )
    size = dict(vocab_size=64, max_position_embeddings=64)
    deberta = transformers.DebertaV2Config(
        **size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_labels=1,
        pad_token_id=1,
    )
    gpt2 = transformers.GPT2Config(
        **size, n_embd=32, n_layer=2, n_head=2, num_labels=2, n_positions=64
    )
    made = {"deberta": (deberta, pair), "gpt2": (gpt2, single)}
    rows = [{"prompt": x, "responses": y} for x, y in zip(PROMPTS, RESPONSES, strict=True)]
    scores: dict[str, list] = {"rows": rows}
    for name, (config, reads) in made.items():
        network = transformers.AutoModelForSequenceClassification.from_config(config).eval()
        for parameter in network.parameters():  # far from a fresh head's, whose logits are near 0
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.3)
        network.save_pretrained(folder / name)
        reads.save_pretrained(folder / name)
        scores[name] = []
        for prompt, responses in zip(PROMPTS, RESPONSES, strict=True):
            logits = []
            for response in responses:
                if reads is pair:
                    row = reads(prompt, response, return_tensors="pt")
                else:
                    text = f"user : {prompt} assistant : {response} "
                    row = reads(text, add_special_tokens=False, return_tensors="pt")
                with torch.no_grad():
                    logits.append(network(**row).logits[0].tolist())
            scores[name].append(logits)
    (folder / "scores.json").write_text(json.dumps(scores))


main(pathlib.Path(sys.argv[1]))
