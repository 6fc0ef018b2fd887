"""config.json as published, and what of it is refused."""

import re

import jax
import jax.numpy as jnp
import pytest

from alignjax.errors import UserError
from alignjax.models import presets, transformer
from alignjax.models.config import RopeScaling
from alignjax.models.hf import configjson
from tests import tiny

LLAMA = dict(
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=128000,
    eos_token_id=[128001, 128008, 128009],
    hidden_act="silu",
    hidden_size=4096,
    initializer_range=0.02,
    intermediate_size=14336,
    max_position_embeddings=131072,
    mlp_bias=False,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=8,
    pretraining_tp=1,
    rms_norm_eps=1e-05,
    rope_scaling=dict(
        factor=8.0,
        high_freq_factor=4.0,
        low_freq_factor=1.0,
        original_max_position_embeddings=8192,
        rope_type="llama3",
    ),
    rope_theta=500000.0,
    tie_word_embeddings=False,
    torch_dtype="bfloat16",
    transformers_version="4.43.0",
    use_cache=True,
    vocab_size=128256,
)
QWEN = dict(
    architectures=["Qwen2ForCausalLM"],
    model_type="qwen2",
    hidden_act="silu",
    hidden_size=1536,
    intermediate_size=8960,
    max_window_layers=21,
    num_attention_heads=12,
    num_hidden_layers=28,
    num_key_value_heads=2,
    rms_norm_eps=1e-06,
    rope_theta=1000000.0,
    sliding_window=32768,
    tie_word_embeddings=True,
    use_sliding_window=False,
    vocab_size=151936,
)
MISTRAL = dict(
    architectures=["MistralForCausalLM"],
    model_type="mistral",
    hidden_act="silu",
    hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=8,
    rms_norm_eps=1e-05,
    rope_theta=10000.0,
    sliding_window=4096,
    vocab_size=32000,
)
GEMMA_2 = dict(
    architectures=["Gemma2ForCausalLM"],
    model_type="gemma2",
    attn_logit_softcapping=50.0,
    cache_implementation="hybrid",
    final_logit_softcapping=30.0,
    head_dim=256,
    hidden_act="gelu_pytorch_tanh",
    hidden_activation="gelu_pytorch_tanh",
    hidden_size=3584,
    intermediate_size=14336,
    num_attention_heads=16,
    num_hidden_layers=42,
    num_key_value_heads=8,
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-06,
    rope_theta=10000.0,
    sliding_window=4096,
    sliding_window_size=None,
    vocab_size=256000,
)
GEMMA_3 = dict(
    architectures=["Gemma3ForCausalLM"],
    model_type="gemma3_text",
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    head_dim=256,
    hidden_activation="gelu_pytorch_tanh",
    hidden_size=1152,
    intermediate_size=6912,
    num_attention_heads=4,
    num_hidden_layers=26,
    num_key_value_heads=1,
    query_pre_attn_scalar=256,
    rms_norm_eps=1e-06,
    rope_local_base_freq=10000,
    rope_scaling=None,
    rope_theta=1000000,
    sliding_window=512,
    sliding_window_pattern=6,
    vocab_size=262144,
)
NEW_ROPE = dict(
    full_attention=dict(rope_type="default", rope_theta=1000000.0),
    sliding_attention=dict(rope_type="default", rope_theta=10000.0),
)


def without(content, *names, **changes):
    return {**{k: v for k, v in content.items() if k not in names}, **changes}


@pytest.mark.parametrize(
    ("content", "preset"),
    [
        (LLAMA, presets.llama31_8b),
        (
            without(LLAMA, "rope_scaling", "rope_theta")
            | dict(rope_parameters={**LLAMA["rope_scaling"], "rope_theta": 5e5}, dtype="bfloat16"),
            presets.llama31_8b,
        ),
        (QWEN, presets.qwen25_1p5b),
        (MISTRAL, presets.mistral_7b_v01),
        (
            without(MISTRAL, sliding_window=None, vocab_size=32768, rope_theta=1e6, head_dim=None),
            presets.mistral_7b,
        ),
        (GEMMA_2, presets.gemma2_9b),
        (GEMMA_3, presets.gemma3_1b),
        (
            without(GEMMA_3, "rope_theta", "rope_local_base_freq", "sliding_window_pattern")
            | dict(
                rope_parameters=NEW_ROPE,
                layer_types=[
                    "full_attention" if i % 6 == 5 else "sliding_attention" for i in range(26)
                ],
            ),
            presets.gemma3_1b,
        ),
    ],
)
def test_published_files_are_the_presets(content, preset):
    assert configjson.read(content, "config.json") == preset()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(model_type="gpt2"), r"model_type: 'gpt2' is not supported; llama, mistral, qwen2, "),
        (
            dict(model_type="lama"),
            r"model_type: 'lama' is not supported \(did you mean 'llama'\?\)",
        ),
        (dict(model_type=["llama"]), r"model_type: \['llama'\] is not supported"),
        (
            dict(architectures=["LlamaForTokenClassification"]),
            r"architectures: wanted LlamaForCausalLM, found \['LlamaForTokenClassification'\]",
        ),
        (dict(quantization_config={"bits": 4}), r"quantization_config: wanted {}, found {'bits'"),
        (dict(num_experts=8), r"num_experts: this option is not supported \(found 8\)"),
        (dict(attention_bias="yes"), r"attention_bias: wanted true or false, found 'yes'"),
        (dict(hidden_act="gelu"), r"hidden_act: wanted 'silu' or 'swish', found 'gelu'"),
        (dict(rope_interleaved=True), r"rope_interleaved: wanted False, found True"),
        (dict(partial_rotary_factor=0.5), r"partial_rotary_factor: wanted 1, found 0\.5"),
        (dict(layer_types=["sliding_attention"] * 32), "layer_types: wanted full_attention alone"),
        (dict(rope_parameters={"rope_theta": 1e4}), "rope_theta: config says 500000.0, rope_param"),
        (
            dict(rope_parameters={**LLAMA["rope_scaling"], "factor": 2.0}),
            "factor: rope_scaling says 8.0, rope_parameters says 2.0",
        ),
        (
            dict(original_max_position_embeddings=4096),
            "original_max_position_embeddings: config says 4096, rope_scaling says 8192",
        ),
        (dict(rope_scaling={"rope_type": "yarn", "factor": 2.0}), r"rope_scaling: 'yarn' is not"),
        (
            dict(rope_scaling={"rope_type": "linear", "factor": 2.0, "mrope_section": [2]}),
            r"rope_scaling\.mrope_section: this option is not supported",
        ),
        (dict(rope_scaling=[1]), r"rope_scaling: wanted an object"),
        (dict(hidden_size=None), r"hidden_size: wanted a number above 0, found None"),
        (dict(hidden_size="4096"), r"hidden_size: wanted a number above 0, found '4096'"),
        (dict(hidden_size=True), r"hidden_size: wanted a number above 0, found True"),
        (dict(hidden_size=10**15), r"hidden_size: wanted an integer of at most 16777216"),
        (dict(hidden_size=2.5), r"hidden_size: wanted an integer"),
        (dict(num_hidden_layers=10**6), r"num_hidden_layers: wanted 1024 at most"),
        (
            dict(num_key_value_heads=5),
            r"model\.kv_heads: wanted a divisor of heads \(32\), found 5",
        ),
        (dict(tie_word_embeddings="yes"), r"tie_word_embeddings: wanted true or false"),
        (dict(rms_norm_eps=float("nan")), r"rms_norm_eps: wanted a number above 0, found nan"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(changes, said):
    with pytest.raises(UserError, match=f"^config.json: {said}"):
        configjson.read({**LLAMA, **changes}, "config.json")


@pytest.mark.parametrize(
    ("content", "changes", "said"),
    [
        (QWEN, dict(use_sliding_window=True), "layer_types: this order is not supported"),
        (GEMMA_3, dict(layer_types=["full_attention"]), "layer_types: wanted 26 of full_attention"),
        (GEMMA_3, dict(attn_logit_softcapping=50.0), "attn_logit_softcapping: wanted None"),
        (GEMMA_3, dict(use_bidirectional_attention=True), "use_bidirectional_attention: wanted F"),
        (
            without(GEMMA_3, "rope_theta"),
            dict(rope_parameters={**NEW_ROPE, "sliding_attention": {"rope_type": "linear"}}),
            "rope_parameters.sliding_attention: scaling is not supported",
        ),
    ],
)
def test_windows_that_cannot_be_said_are_refused(content, changes, said):
    with pytest.raises(UserError, match=re.escape(f"config.json: {said}")):
        configjson.read({**content, **changes}, "config.json")


# What PretrainedConfig.to_dict() of transformers 4.42 adds to every model's own fields.
EVERY_MODEL_4 = dict(
    return_dict=True, output_hidden_states=False, output_attentions=False, torchscript=False,
    use_bfloat16=False, tf_legacy_loss=False, pruned_heads={}, chunk_size_feed_forward=0,
    is_encoder_decoder=False, is_decoder=False, cross_attention_hidden_size=None,
    add_cross_attention=False, tie_encoder_decoder=False, max_length=20, min_length=0,
    do_sample=False, early_stopping=False, num_beams=1, num_beam_groups=1, diversity_penalty=0.0,
    temperature=1.0, top_k=50, top_p=1.0, typical_p=1.0, repetition_penalty=1.0,
    length_penalty=1.0, no_repeat_ngram_size=0, encoder_no_repeat_ngram_size=0,
    bad_words_ids=None, num_return_sequences=1, output_scores=False,
    return_dict_in_generate=False, forced_bos_token_id=None, forced_eos_token_id=None,
    remove_invalid_values=False, exponential_decay_length_penalty=None, suppress_tokens=None,
    begin_suppress_tokens=None, finetuning_task=None, id2label={"0": "LABEL_0", "1": "LABEL_1"},
    label2id={"LABEL_0": 0, "LABEL_1": 1}, tokenizer_class=None, prefix=None, bos_token_id=None,
    pad_token_id=None, eos_token_id=None, sep_token_id=None, decoder_start_token_id=None,
    task_specific_params=None, problem_type=None, _name_or_path="", use_cache=True,
)  # fmt: skip
# The same of transformers 5.23.
EVERY_MODEL_5 = dict(
    _name_or_path="", chunk_size_feed_forward=0, dtype=None, id2label={"0": "LABEL_0"},
    is_encoder_decoder=False, label2id={"LABEL_0": 0}, output_attentions=False,
    output_hidden_states=False, problem_type=None, return_dict=True, transformers_version="5.23.0",
    attention_dropout=0.0, use_cache=True, bos_token_id=1, eos_token_id=[1, 2], pad_token_id=0,
    initializer_range=0.02, max_position_embeddings=8192, rope_scaling=None,
)  # fmt: skip


@pytest.mark.parametrize("added", [EVERY_MODEL_4, EVERY_MODEL_5], ids=["4.42", "5.23"])
@pytest.mark.parametrize("family", [LLAMA, QWEN, MISTRAL, GEMMA_2, GEMMA_3], ids=str)
def test_what_transformers_writes_for_every_model_changes_nothing(family, added):
    assert configjson.read({**added, **family}, "x") == configjson.read(family, "x")


def test_what_other_programs_add_is_noted_and_changes_nothing():
    added = {
        "is_llama_config": True,
        "rope_interleaved": False,
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
        "_model_name_or_path": "some/name",
        "_attn_implementation_autoset": True,
        "partial_rotary_factor": 1.0,
        "unk_token_id": 0,
        "sliding_window": 4096,  # of a Llama, which has none
        "quantization_config": {
            "quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False
        },
        "newer": False,
    }  # fmt: skip
    content = {**LLAMA, **added, "new_thing": None}
    assert configjson.read(content, "x") == presets.llama31_8b()
    assert configjson.notes(content) == sorted(added)
    assert configjson.notes(LLAMA) == []


def test_both_forms_of_rotary_options_are_read_where_they_agree():
    both = dict(rope_parameters={**LLAMA["rope_scaling"], "rope_theta": 5e5})
    assert configjson.read({**LLAMA, **both}, "x") == presets.llama31_8b()
    del (old := dict(LLAMA["rope_scaling"]))["original_max_position_embeddings"]
    short = dict(rope_scaling=old, max_position_embeddings=8192)
    assert configjson.read({**LLAMA, **short}, "x") == presets.llama31_8b()


def test_biases_are_the_family_s_own():
    biases = dict(attention_bias=True, mlp_bias=True)
    read = configjson.read({**LLAMA, **biases}, "x")
    assert (read.qkv_bias, read.o_bias, read.mlp_bias) == (True, True, True)
    with pytest.raises(UserError, match="x: attention_bias: wanted False, found True"):
        configjson.read({**MISTRAL, **biases}, "x")


def test_dynamic_scaling_has_no_effect_within_the_context_and_is_refused_beyond():
    dynamic = dict(rope_type="dynamic", factor=2.0)
    read = configjson.read({**LLAMA, "rope_scaling": dynamic, "max_position_embeddings": 256}, "x")
    assert read.rope_scaling == RopeScaling(kind="dynamic", factor=2.0, original_length=256)
    transformer.check_length(read, 256)
    with pytest.raises(UserError, match=r"up to 256 tokens of prompt and response .* found 257"):
        transformer.check_length(read, 257)
    small = tiny.model(rope_scaling=RopeScaling(kind="dynamic", factor=2.0, original_length=8))
    assert configjson.read(configjson.write(small), "x") == small
    network, tokens = transformer.Transformer(small), jnp.ones((1, 1, 5), jnp.int32)
    with pytest.raises(UserError, match="found 9"):
        network.init(jax.random.key(0), tokens[0, :, :4], jnp.array([4]), tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(tied_embeddings=False, rope_scaling=tiny.SCALING),
        dict(window=7, kv_heads=1),
        dict(qkv_bias=True, window=3),
        dict(qk_norm=True, layers=3),
    ],
    ids=str,
)
def test_small_models_go_through_unchanged(changes):
    config = tiny.model(**changes)
    assert configjson.read(configjson.write(config), "x") == config
