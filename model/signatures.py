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

# Of the signature that turns tokens into text, where a text is the bytes of its tokens one after
# another: string (B,), what TEXT is made of, in which half a character is not yet U+FFFD.
TEXT_BYTES = "text_bytes"

FINISH_STOP = "stop"  # the model ended the text
FINISH_LENGTH = "length"  # max_tokens or the context was used up

GENERATOR_INPUTS = (PROMPT, MAX_TOKENS, TEMPERATURE, TOP_K, TOP_P, SEED)
GENERATOR_OUTPUTS = (TEXT, NUM_TOKENS, FINISH_REASON)
CLASSIFIER_INPUTS = (TEXT,)
CLASSIFIER_OUTPUTS = (LABEL, SCORES, LABELS)
MULTI_LABEL_OUTPUTS = (IS_LABEL, SCORES, LABELS)
REGRESSOR_OUTPUTS = (VALUE,)

# Files of a version folder `<exports>/<name>/<version>/`, besides TensorFlow's own.
MANIFEST_FILE = "manifest.json"
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
