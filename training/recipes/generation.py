"""What comes next: recipes for texts that are written on."""

from model.config import (
    RecurrentLanguageModelConfig,
    SentencePieceTokenizerConfig,
    TransformerDecoderConfig,
)
from training.config import OptimizerConfig, RunConfig
from training.datasets.config import DatasetConfig


def stories() -> RunConfig:
    """Short stories for children in English and Chinese (starter texts)."""
    return RunConfig(
        name="stories",
        dataset=DatasetConfig(name="starter_stories"),
        tokenizer=SentencePieceTokenizerConfig(vocabulary_size=4_000),
        model=TransformerDecoderConfig(context_length=192),
        optimizer=OptimizerConfig(
            peak_learning_rate=2e-3,
            embedding_rate_factor=5.0,
            schedule="cosine(end=0.1, warmup=50)",
            weight_decay=0.1,
        ),
        batch_size=4,
        epochs=8,
    )


def shakespeare() -> RunConfig:
    """Tiny Shakespeare, character by character."""
    return RunConfig(
        name="shakespeare",
        dataset=DatasetConfig(name="tinyshakespeare"),
        tokenizer=SentencePieceTokenizerConfig(model_type="char", vocabulary_size=100),
        model=TransformerDecoderConfig(context_length=128, dropout=0.0),
        optimizer=OptimizerConfig(
            peak_learning_rate=3e-3, schedule="cosine(end=0.1, warmup=100)", weight_decay=0.1
        ),
        batch_size=16,
        epochs=5,
        evaluate_every=500,
        patience=0,
    )


def shakespeare_lstm() -> RunConfig:
    """Tiny Shakespeare, character by character, by two LSTM layers."""
    return RunConfig(
        name="shakespeare_lstm",
        dataset=DatasetConfig(name="tinyshakespeare"),
        tokenizer=SentencePieceTokenizerConfig(model_type="char", vocabulary_size=100),
        model=RecurrentLanguageModelConfig(units=256, context_length=128, dropout=0.0),
        optimizer=OptimizerConfig(
            peak_learning_rate=5e-3, schedule="cosine(end=0.1, warmup=100)", weight_decay=0.01
        ),
        batch_size=16,
        epochs=5,
        evaluate_every=500,
        patience=0,
    )


def tang_poems() -> RunConfig:
    """Tang poems, character by character."""
    return RunConfig(
        name="tang_poems",
        dataset=DatasetConfig(name="tang_poems"),
        tokenizer=SentencePieceTokenizerConfig(model_type="char", vocabulary_size=10_000),
        model=TransformerDecoderConfig(width=192, num_heads=6, inner_width=768, context_length=128),
        optimizer=OptimizerConfig(
            peak_learning_rate=2e-3, schedule="cosine(end=0.1, warmup=200)", weight_decay=0.1
        ),
        batch_size=16,
        epochs=1,
        evaluate_every=250,
        patience=0,
    )


def shakespeare_nanogpt() -> RunConfig:
    """Tiny Shakespeare by the network of nanoGPT's setting for a CPU, moved by Muon."""
    return RunConfig(
        name="shakespeare_nanogpt",
        dataset=DatasetConfig(name="tinyshakespeare"),
        tokenizer=SentencePieceTokenizerConfig(model_type="char", vocabulary_size=100),
        model=TransformerDecoderConfig(
            num_layers=4,
            num_heads=4,
            width=128,
            inner_width=512,
            context_length=64,
            positions="learned",
            bias=False,
            initialization="gpt2",
            dropout=0.0,
        ),
        strategy="muon",
        optimizer=OptimizerConfig(
            peak_learning_rate=0.02, schedule="cosine(end=0.1, warmup=100)", weight_decay=0.01
        ),
        batch_size=12,
        max_updates=2_000,
        evaluate_every=500,
        patience=0,
        updates_per_call=16,
        precision="bfloat16_products",
    )
