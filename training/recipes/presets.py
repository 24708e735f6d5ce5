"""Fine-tuning a KerasHub preset on the data of any recipe."""

import dataclasses

from model.config import PresetClassifierConfig, PresetGeneratorConfig, PresetTokenizerConfig
from training.config import CLASSIFICATION, OptimizerConfig, RunConfig


def fine_tuned(config: RunConfig, preset: str) -> RunConfig:
    """The recipe's data and length with the network and tokenizer of `preset`.

    The rate and its schedule are those of fine-tuning (Devlin et al., 2019, A.3: 2e-5 to 5e-5; a
    tenth of it is warm-up); with `lora_rank` above 0 a hundred times as much suits better.
    """
    if config.task == CLASSIFICATION:
        model: PresetClassifierConfig | PresetGeneratorConfig = PresetClassifierConfig()
    else:
        model = PresetGeneratorConfig()
    return dataclasses.replace(
        config,
        tokenizer=PresetTokenizerConfig(preset=preset),
        model=model,
        earlier=(),
        strategy="adamw",
        optimizer=OptimizerConfig(
            peak_learning_rate=5e-5, schedule="slanted_triangular", weight_decay=0.01
        ),
    )
