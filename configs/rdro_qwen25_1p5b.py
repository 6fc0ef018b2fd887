"""RDRO with the paper's settings: Qwen2.5 1.5B Instruct on unpaired labels.

The data are JSON lines with ``prompt``, ``completion`` and ``label``, the tokenizer the model's own
``tokenizer.json``. alpha is counted in the data: 0.387 of UltraFeedback's responses, half of
KTO Mix 14K's.

This release reads no pretrained weights, so the supervised stage trains from nothing here; a
serious run starts from the model's. The stage imitates all responses, since the theory wants the
reference to be the mixture that the responses were drawn from.

Command:   python -m alignjax run --config=configs/rdro_qwen25_1p5b.py --workdir=runs/rdro_1p5b \
               --set data.path='/data/ultrafeedback/*.jsonl' \
               --set tokenizer.path=/models/qwen2.5-1.5b-instruct
Hardware:  1 GPU of 80 GB; not run here
Time:      TODO measure
Expect:    TODO measure; the paper reports an AlpacaEval length-controlled win rate of 5.6
           (UltraFeedback) and 5.3 (MIX-14K)
"""

from alignjax import optim
from alignjax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    SftConfig,
    TrainConfig,
)
from alignjax.data import sources
from alignjax.models.config import ModelConfig
from alignjax.objectives import rdro, sft


def get_config() -> Config:
    return Config(
        data=DataConfig(source=sources.trl, max_prompt_tokens=512, max_response_tokens=512),
        model=ModelConfig(
            vocab_size=151936,
            width=1536,
            layers=28,
            heads=12,
            kv_heads=2,
            head_dim=128,
            mlp_width=8960,
            rope_theta=1000000.0,
            norm_eps=1e-6,
            qkv_bias=True,
            tied_embeddings=True,
            dtype="bfloat16",
            remat="full",
            logits_chunk=128,
        ),
        sft=SftConfig(loss=sft.loss, learning_rate=1e-5, epochs=1.0, batch_size=128),
        loss=rdro.loss,  # alpha and the class weights are counted in the data
        optim=OptimConfig(
            learning_rate=5e-7, schedule=optim.cosine, warmup_fraction=0.1, clip_norm=1.0
        ),
        train=TrainConfig(epochs=1.0, batch_size=128, accumulate=8, save_every=50),
        evaluate=EvaluateConfig(prompts=64, samples=1, max_new_tokens=256, batch_size=32),
    )
