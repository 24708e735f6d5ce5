"""The table of recipes: a recipe is a function that returns a complete configuration."""

from collections.abc import Callable

from training.config import RunConfig
from training.recipes import generation, sentiment, stages, topics, word_vectors
from training.recipes.first_steps import FIRST_STEPS
from training.recipes.presets import fine_tuned as fine_tuned

DEFAULT_RECIPES = ("sentiment", "topics", "stories")

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "sentiment": sentiment.sentiment,
    "sentiment_lstm": sentiment.sentiment_lstm,
    "sentiment_gru": sentiment.sentiment_gru,
    "sentiment_text_cnn": sentiment.sentiment_text_cnn,
    "sentiment_gated_convolution": sentiment.sentiment_gated_convolution,
    "sentiment_transformer": sentiment.sentiment_transformer,
    "sst2": sentiment.sst2,
    "sst5": sentiment.sst5,
    "imdb": sentiment.imdb,
    "chnsenticorp": sentiment.chnsenticorp,
    "weibo2018": sentiment.weibo2018,
    "waimai_10k": sentiment.waimai_10k,
    "online_shopping": sentiment.online_shopping,
    "topics": topics.topics,
    "tnews": topics.tnews,
    "ag_news_sample": topics.ag_news_sample,
    "thucnews": topics.thucnews,
    "newsgroups": topics.newsgroups,
    "stories": generation.stories,
    "shakespeare": generation.shakespeare,
    "shakespeare_lstm": generation.shakespeare_lstm,
    "shakespeare_nanogpt": generation.shakespeare_nanogpt,
    "tang_poems": generation.tang_poems,
    "sentiment_ulmfit": stages.sentiment_ulmfit,
    "sst2_ulmfit": stages.sst2_ulmfit,
    "chnsenticorp_ulmfit": stages.chnsenticorp_ulmfit,
    "sentiment_masked": stages.sentiment_masked,
    "sentiment_lora": stages.sentiment_lora,
    "sentiment_distilled": stages.sentiment_distilled,
    "shakespeare_warmup": stages.shakespeare_warmup,
    "skip_gram": word_vectors.skip_gram,
    "cbow": word_vectors.cbow,
    "glove": word_vectors.glove,
}


def recipe(name: str) -> RunConfig:
    """The configuration of recipe `name`; raises ValueError listing the known ones."""
    if name in FIRST_STEPS:
        raise ValueError(
            f"{name} is a first step: python -m training fit {name} runs and checks it, and keeps "
            f"nothing. Recipes: {', '.join(RECIPES)}."
        )
    if name not in RECIPES:
        raise ValueError(f"Unknown recipe {name!r}. Known: {', '.join(RECIPES)}.")
    return RECIPES[name]()
