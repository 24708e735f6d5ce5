"""Several stages, one after another: recipes that read texts before they learn from labels."""

import dataclasses

from model.config import (
    BidirectionalLSTMConfig,
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

# Howard & Ruder (2018), sec. 3.2: each layer learns 2.6 times slower than the one above it.
_LAYER_BY_LAYER = "lstm_1=0.385, lstm_0=0.148, embedding=0.057"


def sentiment_ulmfit() -> RunConfig:
    """Reads stories, then reviews, then learns to judge, layer after layer (ULMFiT; starter)."""
    return _ulmfit(
        "sentiment_ulmfit", "starter_sentiment", ("starter_stories", "starter_sentiment")
    )


def sst2_ulmfit() -> RunConfig:
    """Reads film reviews (IMDB), then sentences of SST-2, then learns to judge them (ULMFiT)."""
    return _ulmfit("sst2_ulmfit", "sst2", ("imdb", "sst2"), general_examples=4_000)


def chnsenticorp_ulmfit() -> RunConfig:
    """Reads the Chinese reviews without their labels, then with them (ULMFiT)."""
    return _ulmfit("chnsenticorp_ulmfit", "chnsenticorp", ("chnsenticorp",), max_tokens=128)


def sentiment_masked() -> RunConfig:
    """An encoder that guesses hidden words first, then judges (BERT's way; starter)."""
    return RunConfig(
        name="sentiment_masked",
        dataset=DatasetConfig(name="starter_sentiment"),
        tokenizer=WordTokenizerConfig(max_tokens=64),
        model=TransformerEncoderConfig(token_head=True),
        earlier=(_masked("hidden_words"),),
        optimizer=OptimizerConfig(
            peak_learning_rate=5e-4, schedule="cosine(warmup=100)", weight_decay=0.01
        ),
        epochs=8,
    )


def sentiment_lora() -> RunConfig:
    """The same encoder; to judge, it learns low-rank changes of its matrices alone (LoRA)."""
    return dataclasses.replace(
        sentiment_masked(),
        name="sentiment_lora",
        lora_rank=8,
        lora_layers="qkv|output_projection|expand|contract",
        trainable="encoder/head",
        optimizer=OptimizerConfig(peak_learning_rate=2e-3, schedule="cosine(warmup=100)"),
    )


def sentiment_distilled() -> RunConfig:
    """A small LSTM that learns from the labels and from the bag of n-grams of `sentiment`."""
    return RunConfig(
        name="sentiment_distilled",
        dataset=DatasetConfig(name="starter_sentiment"),
        tokenizer=WordTokenizerConfig(max_tokens=64),
        model=BidirectionalLSTMConfig(),
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
    dataset: str,
    texts: tuple[str, ...],
    *,
    max_tokens: int = 64,
    general_examples: int | None = None,
) -> RunConfig:
    """Language models of each of `texts`, then the head, the last layer, and all of the network."""
    reading = [
        StageConfig(
            name=f"read_{text}",
            dataset=DatasetConfig(
                name=text, max_examples=general_examples if text != dataset else None
            ),
            objective=LANGUAGE_MODEL,
            optimizer=OptimizerConfig(
                peak_learning_rate=3e-3 if number == 0 else 1e-3,
                schedule="slanted_triangular",
                embedding_rate_factor=3.0 if number == 0 else 1.0,
            ),
            epochs=4,
        )
        for number, text in enumerate(texts)
    ]
    unfreezing = [
        StageConfig(
            name=stage,
            trainable=trainable,
            rate_factors=_LAYER_BY_LAYER,
            optimizer=OptimizerConfig(peak_learning_rate=3e-3, schedule="slanted_triangular"),
            epochs=1,
            keep="last",
        )
        for stage, trainable in (("head", "head"), ("last_layer", "head|lstm_1"))
    ]
    return RunConfig(
        name=name,
        dataset=DatasetConfig(name=dataset),
        tokenizer=WordTokenizerConfig(max_tokens=max_tokens),
        model=ULMFiTLSTMConfig(),
        earlier=(*reading, *unfreezing),
        rate_factors=_LAYER_BY_LAYER,
        optimizer=OptimizerConfig(peak_learning_rate=3e-3, schedule="slanted_triangular"),
        epochs=6,
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
