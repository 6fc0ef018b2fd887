"""RDRO with the paper's settings: Llama 3.1 8B Instruct on UltraFeedback's unpaired labels.

The data are ``trl-lib/ultrafeedback-gpt-3.5-turbo-helpfulness`` as JSON lines with ``prompt``,
``completion`` and ``label`` (6,088 preferred and 9,644 other responses in the paper), the tokenizer
the model's own ``tokenizer.json``. alpha, 0.387 there, is counted in the data.

This release reads no pretrained weights, so the supervised stage trains from nothing here; a
serious run starts from the model's. The stage imitates all responses, since the theory wants the
reference to be the mixture that the responses were drawn from.

Command:   python -m alignjax run --config=configs/rdro_ultrafeedback_llama3_8b.py \
               --workdir=runs/rdro_8b --set data.path='/data/ultrafeedback/*.jsonl' \
               --set tokenizer.path=/models/llama-3.1-8b-instruct
Hardware:  8 GPUs of 80 GB; not run here
Time:      TODO measure
Expect:    TODO measure; the paper reports an AlpacaEval length-controlled win rate of 17.3
"""

from alignjax import optim
from alignjax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    MeshConfig,
    OptimConfig,
    SftConfig,
    TrainConfig,
)
from alignjax.data import sources
from alignjax.models.config import ModelConfig, RopeScaling
from alignjax.objectives import rdro, sft


def get_config() -> Config:
    return Config(
        data=DataConfig(source=sources.trl, max_prompt_tokens=512, max_response_tokens=512),
        model=ModelConfig(
            vocab_size=128256,
            width=4096,
            layers=32,
            heads=32,
            kv_heads=8,
            head_dim=128,
            mlp_width=14336,
            rope_theta=500000.0,
            rope_scaling=RopeScaling(
                factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192
            ),
            norm_eps=1e-5,
            tied_embeddings=False,
            dtype="bfloat16",
            remat="full",
            logits_chunk=128,
        ),
        sft=SftConfig(loss=sft.loss, learning_rate=5e-6, epochs=1.0, batch_size=128),
        loss=rdro.loss,  # alpha and the class weights are counted in the data
        optim=OptimConfig(
            learning_rate=5e-7, schedule=optim.cosine, warmup_fraction=0.1, clip_norm=1.0
        ),
        train=TrainConfig(epochs=1.0, batch_size=128, accumulate=4, save_every=50),
        mesh=MeshConfig(fsdp=8),
        evaluate=EvaluateConfig(prompts=64, samples=1, max_new_tokens=256, batch_size=32),
    )
