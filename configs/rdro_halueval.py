"""RDRO on real labels, 4.5 to 1: HaluEval's general answers, with and without hallucination.

The class weights that balance them are printed with the data report. A small model, trained from
random weights: this shows that the loss trains on imbalanced data, not that it detects
hallucination. The means are over each class, as in the paper's Equation 18, not over the mixed
batch, as in its code: what is expected below is measured here, not quoted.

Command:   python -m alignjax run --config=configs/rdro_halueval.py --workdir=runs/halueval \
               --set data.path=/data/halueval/general_data.jsonl.gz
Hardware:  2 CPU cores
Time:      2.4 minutes of CPU time (16 minutes elapsed on a busy machine)
Expect:    3,286 desirable and 729 undesirable responses to train on, class weights 1.2219 and
           5.5075; 126 steps, none skipped, gradient norm 11 to 18 (averages over 10 steps), loss
           1.38 to 1.51; on 492 held-out rows the log-ratio is 0.076 ± 0.051 where desirable and
           -0.103 ± 0.141 where not (one seed; ± is the 95% interval over prompts)
"""

from functools import partial

from alignjax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
)
from alignjax.data import sources
from alignjax.losses import rdro, sft
from alignjax.models.config import ModelConfig
from alignjax.training import optim


def get_config() -> Config:
    return Config(
        data=DataConfig(
            source=partial(
                sources.unpaired,
                prompt="user_query",
                response="chatgpt_response",
                label="hallucination",
                desirable="no",
                undesirable="yes",
                chat=True,
            ),
            eval_fraction=0.1,
            max_prompt_tokens=64,
            max_response_tokens=64,
        ),
        tokenizer=TokenizerConfig(vocab_size=2048),
        model=ModelConfig(
            vocab_size=2048,
            width=128,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=32,
            mlp_width=352,
            logits_chunk=32,
        ),
        sft=SftConfig(loss=sft.loss, learning_rate=2e-3, epochs=1.0, batch_size=32),
        loss=rdro.loss,  # alpha and the class weights are counted in the data: Equation 18
        optim=OptimConfig(learning_rate=1e-4, schedule=optim.cosine),
        train=TrainConfig(epochs=1.0, batch_size=32, eval_every=42),
        evaluate=EvaluateConfig(prompts=0),
    )
