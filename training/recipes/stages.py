"""Several stages, one after another: recipes that read texts before they learn from labels."""

import dataclasses
from typing import Any

from model.config import (
    RecurrentConfig,
    SentencePieceTokenizerConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
    ULMFiTLSTMConfig,
    WordTokenizerConfig,
)
from training.config import (
    DISTILLATION,
    LANGUAGE_MODEL,
    MASKED_LANGUAGE_MODEL,
    OptimizerConfig,
    RunConfig,
    StageConfig,
)
from training.datasets.config import DatasetConfig

# Howard & Ruder (2018), sec. 3.2: each layer learns 2.6 times slower than the one above it. For the
# language model the embedding is the top layer too: it is the output head, transposed.
_READING = "lstm_1=0.385, lstm_0=0.148"
_JUDGING = "lstm_1=0.385, lstm_0=0.148, embedding=0.0569"
# Sec. 3.3, gradual unfreezing: one pass each, from the top layer down; then all of the network.
_UNFREEZING = {"head": "head", "top_lstm": "head|lstm_1", "both_lstms": "head|lstm_1|lstm_0"}


def sentiment_ulmfit() -> RunConfig:
    """Reads stories, then reviews, then learns to judge, layer after layer (ULMFiT; starter)."""
    reviews = DatasetConfig(name="starter_sentiment")
    texts = (DatasetConfig(name="starter_stories"), reviews)
    return _ulmfit("sentiment_ulmfit", reviews, texts, passes=(6, 6), max_tokens=64)


def sst2_ulmfit() -> RunConfig:
    """Reads film reviews (IMDB), then sentences of SST-2, then learns to judge them (ULMFiT)."""
    sentences = DatasetConfig(name="sst2")
    texts = (DatasetConfig(name="imdb", max_examples=8_000), sentences)
    return _ulmfit("sst2_ulmfit", sentences, texts, passes=(2, 3), max_tokens=64)


def chnsenticorp_ulmfit() -> RunConfig:
    """Reads the Chinese reviews without their labels, then with them (ULMFiT)."""
    reviews = DatasetConfig(name="chnsenticorp")
    return _ulmfit("chnsenticorp_ulmfit", reviews, (reviews,), passes=(3,), max_tokens=96)


def sentiment_masked() -> RunConfig:
    """An encoder that guesses hidden words first, then judges (BERT's way; starter)."""
    return RunConfig(
        name="sentiment_masked",
        dataset=DatasetConfig(name="starter_sentiment"),
        tokenizer=WordTokenizerConfig(max_tokens=64),
        model=TransformerEncoderConfig(token_head=True),
        earlier=(_masked("hidden_words"),),
        optimizer=OptimizerConfig(
            peak_learning_rate=1e-3,
            schedule="cosine(warmup=100)",
            weight_decay=0.01,
            embedding_rate_factor=3.0,
        ),
        epochs=10,
    )


def sentiment_lora() -> RunConfig:
    """The same encoder; to judge, it learns low-rank changes of its matrices alone (LoRA)."""
    return dataclasses.replace(
        sentiment_masked(),
        name="sentiment_lora",
        lora_rank=8,
        lora_layers="embedding|qkv|output_projection|expand|contract",
        trainable="encoder/head",
        optimizer=OptimizerConfig(peak_learning_rate=5e-3, schedule="cosine(warmup=100)"),
    )


def sentiment_distilled() -> RunConfig:
    """A small LSTM that learns from the labels and from the bag of n-grams of `sentiment`."""
    return RunConfig(
        name="sentiment_distilled",
        dataset=DatasetConfig(name="starter_sentiment"),
        tokenizer=WordTokenizerConfig(max_tokens=64),
        model=RecurrentConfig(),
        objective=DISTILLATION,
        teacher="sentiment",
        distillation_share=0.7,
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, embedding_rate_factor=3.0),
        epochs=8,
    )


def shakespeare_warmup() -> RunConfig:
    """Tiny Shakespeare in growing windows and growing batches."""
    return RunConfig(
        name="shakespeare_warmup",
        dataset=DatasetConfig(name="tinyshakespeare"),
        tokenizer=SentencePieceTokenizerConfig(model_type="char", vocabulary_size=100),
        model=TransformerDecoderConfig(context_length=128, dropout=0.0),
        optimizer=OptimizerConfig(
            peak_learning_rate=3e-3, schedule="cosine(end=0.1, warmup=100)", weight_decay=0.1
        ),
        batch_size="linear(8, 16, steps=600)",
        max_tokens="linear(32, 128, steps=600)",
        max_updates=2_200,
        evaluate_every=500,
        patience=0,
    )


def _ulmfit(
    name: str,
    dataset: DatasetConfig,
    texts: tuple[DatasetConfig, ...],
    *,
    passes: tuple[float, ...],
    max_tokens: int,
) -> RunConfig:
    """A language model of `texts`, in turn; then a classifier, unfrozen from the top down."""
    reading = [
        StageConfig(
            name=f"read_{text.name}",
            dataset=text,
            objective=LANGUAGE_MODEL,
            rate_factors=_READING if number else "",  # what has learned already moves with care
            optimizer=OptimizerConfig(
                peak_learning_rate=4e-3, schedule="slanted_triangular", embedding_rate_factor=3.0
            ),
            dropout="0.2",
            epochs=passes[number],
            patience=0,
        )
        for number, text in enumerate(texts)
    ]
    judging: dict[str, Any] = {
        "rate_factors": _JUDGING,
        # A row of the embedding moves only when its word occurs: without the last factor it hardly
        # would in so few updates, being three layers down.
        "optimizer": OptimizerConfig(
            peak_learning_rate=1e-2, schedule="slanted_triangular", embedding_rate_factor=10.0
        ),
        "dropout": "0.3",
        "batch_size": 16,
    }
    unfreezing = [
        StageConfig(name=stage, trainable=trainable, epochs=1, keep="last", **judging)
        for stage, trainable in _UNFREEZING.items()
    ]
    return RunConfig(
        name=name,
        dataset=dataset,
        tokenizer=WordTokenizerConfig(vocabulary_size=6_000, max_tokens=max_tokens),
        model=ULMFiTLSTMConfig(embedding_size=64, units=64),
        earlier=(*reading, *unfreezing),
        epochs=10,
        patience=0,
        **judging,
    )


def _masked(name: str) -> StageConfig:
    return StageConfig(
        name=name,
        objective=MASKED_LANGUAGE_MODEL,
        optimizer=OptimizerConfig(
            peak_learning_rate=2e-3, schedule="cosine(warmup=100)", embedding_rate_factor=3.0
        ),
        epochs=8,
        patience=0,
    )
