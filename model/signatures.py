"""The contract between `training/`, which writes exports, and `serving/`, which runs them.

Plain constants, no TensorFlow: a server, a client and a test may import this for nothing.
Every input and output has rank 1 or 2 and the batch B as its only free dimension in front,
so TensorFlow Serving may batch any signature without knowing what it means.
"""

SERVING_DEFAULT = "serving_default"

CLASSIFIER = "classifier"
GENERATOR = "generator"
MULTI_LABEL = "multi_label"  # a network of kind CLASSIFIER that was trained with target=labels
REGRESSOR = "regressor"  # ... with target=number

# Classifier: text -> label, scores, labels.
TEXT = "text"  # string (B,), UTF-8, any length, may be empty
LABEL = "label"  # string (B,), the label with the highest score
SCORES = "scores"  # float32 (B, num_labels), probabilities that sum to 1, in the order of LABELS
LABELS = "labels"  # string (B, num_labels), the same row for every text

# Multi-label: text -> is_label, scores, labels. Scores are probabilities of each label by itself.
IS_LABEL = "is_label"  # bool (B, num_labels), whether the label's score is at least 0.5

# Regressor: text -> value.
VALUE = "value"  # float32 (B,), in the unit of the training data

# Generator: six inputs of one value per row -> the continuation, without the prompt.
PROMPT = "prompt"  # string (B,), UTF-8, may be empty; only its last tokens are read if it is long
MAX_TOKENS = "max_tokens"  # int32 (B,), >= 0, cut to what is left of the context
TEMPERATURE = "temperature"  # float32 (B,), 0 is greedy
TOP_K = "top_k"  # int32 (B,), 0 switches it off
TOP_P = "top_p"  # float32 (B,), in (0, 1]; 1 switches it off
SEED = "seed"  # int32 (B,), one per row: a row's text does not depend on the rows beside it
NUM_TOKENS = "num_tokens"  # int32 (B,), tokens in the answer
FINISH_REASON = "finish_reason"  # string (B,), FINISH_STOP or FINISH_LENGTH

FINISH_STOP = "stop"  # the model ended the text
FINISH_LENGTH = "length"  # max_tokens or the context was used up

GENERATOR_INPUTS = (PROMPT, MAX_TOKENS, TEMPERATURE, TOP_K, TOP_P, SEED)
GENERATOR_OUTPUTS = (TEXT, NUM_TOKENS, FINISH_REASON)
CLASSIFIER_INPUTS = (TEXT,)
CLASSIFIER_OUTPUTS = (LABEL, SCORES, LABELS)
MULTI_LABEL_OUTPUTS = (IS_LABEL, SCORES, LABELS)
REGRESSOR_OUTPUTS = (VALUE,)

# What a language model's export answers besides, for whoever writes token by token. C is the
# context length, V the vocabulary; tokens int32 (B, C) begin at the left, 0 behind the last.
TOKENIZE = "tokenize"  # text -> tokens, num_tokens
DETOKENIZE = "detokenize"  # tokens, num_tokens -> text, text_bytes
NEXT_TOKENS = "next_tokens"  # a text so far -> the tokens that follow
SCORE = "score"  # text -> tokens, num_tokens, logprobs, top_tokens, top_logprobs, C steps each
EMBED = "embed"  # text -> embedding
# For an engine that keeps the cache, whose T tokens and S slots are free besides the batch; only
# networks that can go back have them. A cache is passed as the tensors of `cache_names`.
PREFILL = "prefill"  # tokens (B, T), num_tokens -> logits, a cache of S = T slots
DECODE = "decode"  # tokens (B, T), num_tokens, position, a cache -> logits, the new cache

TOKENS = "tokens"  # int32 (B, C), without begin and end; of a longer text the last C
# NUM_TOKENS of a text is its true length, which may be more than C.
NUM_PROMPT = "num_prompt"  # int32 (B,), how many of the tokens are the prompt's
# Bytes string (B,) that TEXT is made of, half characters included; left out by a tokenizer whose
# texts are not the bytes of their tokens one after another.
TEXT_BYTES = "text_bytes"
MIN_P = "min_p"  # float32 (B,), in [0, 1]; 0 switches it off
REPETITION_PENALTY = "repetition_penalty"  # float32 (B,), above 0; 1 switches it off
PRESENCE_PENALTY = "presence_penalty"  # float32 (B,), 0 switches it off
FREQUENCY_PENALTY = "frequency_penalty"  # float32 (B,), 0 switches it off
LOGPROBS = "logprobs"  # float32 (B, steps), natural, of the network itself: as if temperature 1
TOP_TOKENS = "top_tokens"  # int32 (B, steps, NUM_TOP), the likeliest of each place, best first
TOP_LOGPROBS = "top_logprobs"  # float32 (B, steps, NUM_TOP), theirs

EMBEDDING = "embedding"  # float32 (B, D), of length 1
# Of PREFILL and DECODE: tokens int32 (B, T) are what the network reads, a begin included; of each
# row the first NUM_TOKENS count, one at least.
POSITION = "position"  # int32 (B,), where a row's first token stands: how many slots are taken
LOGITS = "logits"  # float32 (B, V), of what follows a row's last token
_KEY, _VALUE = "key_{}", "value_{}"  # float (B, K, S, H), the layout of model/attention.py

NUM_TOP = 5
FINISH_NOT = ""  # FINISH_REASON of NEXT_TOKENS: there may be more; FINISH_LENGTH: context is full

# Of NEXT_TOKENS. The outputs have as many steps as the largest MAX_TOKENS of the batch, at most C;
# NUM_TOKENS says how many of a row's are written, and what is behind them is 0.
NEXT_TOKENS_INPUTS = (
    TOKENS,
    NUM_PROMPT,
    NUM_TOKENS,
    MAX_TOKENS,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    SEED,
    MIN_P,
    REPETITION_PENALTY,
    PRESENCE_PENALTY,
    FREQUENCY_PENALTY,
)
NEXT_TOKENS_OUTPUTS = (
    TOKENS,
    NUM_TOKENS,
    FINISH_REASON,
    LOGPROBS,
    TOP_TOKENS,
    TOP_LOGPROBS,
)


def cache_names(num_layers: int) -> list[str]:
    """The tensors of a cache in their order: key_0, value_0, key_1, ..."""
    return [name.format(i) for i in range(num_layers) for name in (_KEY, _VALUE)]


# Entries of the manifest that a language model's has besides.
CONTEXT_LENGTH = "context_length"  # C, tokens, the begin in front of a text included
VOCABULARY_SIZE = "vocabulary_size"
NUM_PARAMETERS = "num_parameters"
WEIGHTS = "weights"  # how matrices are stored, one of the three below
WEIGHTS_FLOAT32 = "float32"
WEIGHTS_BFLOAT16 = "bfloat16"
WEIGHTS_INT8 = "int8"  # with a scale for each output

# Files of a version folder `<exports>/<name>/<version>/`, besides TensorFlow's own.
MANIFEST_FILE = "manifest.json"
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
