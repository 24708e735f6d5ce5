"""SentencePiece (Kudo & Richardson, 2018) inside the graph, trained by its own library."""

from __future__ import annotations

import collections
import io
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
import tensorflow_text as tf_text

from model.config.tokenizers import UNCHANGED, SentencePieceTokenizerConfig
from model.tokenizers.normalization import (
    BEGIN,
    END,
    PADDING,
    UNKNOWN,
    Normalizer,
    cut,
    damaged,
    normalized,
    valid_utf8,
)

_AS_IT_IS = Normalizer(UNCHANGED)
_BYTE = re.compile(rb"<0x([0-9A-F]{2})>")  # a piece for what no other piece has
_BLANK = "\u2581".encode()


class SentencePieceTokenizer(tf.Module):
    """SentencePiece over text: blanks and line breaks come back, CR LF as LF.

    (And U+2581, which SentencePiece writes for a blank, as a blank.)
    Call: string (B,) -> ragged int32 (B, T), T at most `max_tokens`, without BEGIN and END.
    Characters outside the vocabulary fall back to their UTF-8 bytes (`char` models know only what
    they saw: a run of the rest becomes one unknown).
    """

    file_name = "sentencepiece.model"

    def __init__(
        self,
        model_proto: bytes,
        max_tokens: int | None = None,
        normalize: Normalizer = _AS_IT_IS,
    ):
        super().__init__()
        self.model_proto, self.max_tokens, self.normalize = model_proto, max_tokens, normalize
        # A kernel of TensorFlow's eager cache owns this resource (TensorFlow Text 2.21.1), so
        # nothing here may call `tf.random.set_seed`, which empties that cache.
        self.pieces = tf_text.SentencepieceTokenizer(model=model_proto, out_type=tf.int32)
        self.vocabulary_size = int(self.pieces.vocab_size().numpy())
        pieces = self.pieces.id_to_string(tf.range(self.vocabulary_size)).numpy()
        self.token_bytes = tf.constant([_bytes_of(*entry) for entry in enumerate(pieces)])

    @classmethod
    def train(
        cls, texts: Sequence[str], config: SentencePieceTokenizerConfig
    ) -> SentencePieceTokenizer:
        # Only needed where a vocabulary is made.
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        if not any(text.strip() for text in texts):
            raise ValueError("A vocabulary needs text to be trained on. Received: empty texts only")
        normalize = Normalizer.create(config)
        texts = list(normalized(normalize, texts))
        is_char = config.model_type == "char"
        model = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder:
            rules = Path(folder) / "normalization.tsv"
            rules.write_text("D A\tA\n")  # code points: the line ends of Windows become ours
            try:
                sentencepiece.SentencePieceTrainer.train(
                    sentence_iterator=iter(_lines(texts)),
                    model_writer=model,
                    model_type=config.model_type,
                    vocab_size=config.vocabulary_size,
                    hard_vocab_limit=False,  # a small corpus gives a smaller vocabulary
                    character_coverage=1.0 if is_char else _coverage(texts, config),
                    byte_fallback=not is_char,
                    normalization_rule_tsv=str(rules),
                    add_dummy_prefix=False,
                    remove_extra_whitespaces=False,
                    user_defined_symbols=["\n"],
                    pad_id=PADDING,
                    unk_id=UNKNOWN,
                    bos_id=BEGIN,
                    eos_id=END,
                    max_sentence_length=1_000_000,  # bytes
                    num_threads=1,  # the pieces of equal score depend on it
                    minloglevel=3,
                )
            except RuntimeError as error:
                raise ValueError(
                    "SentencePiece cannot make a vocabulary of tokenizer.vocabulary_size="
                    f"{config.vocabulary_size} from these texts; set another. It says: {error}"
                ) from error
        proto = sentencepiece_model_pb2.ModelProto.FromString(  # type: ignore[attr-defined]
            model.getvalue()
        )
        # The rules are compiled in: what is left is a temporary path, another one in every run.
        proto.normalizer_spec.ClearField("normalization_rule_tsv")
        return cls(proto.SerializeToString(deterministic=True), config.max_tokens, normalize)

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        return cut(self.pieces.tokenize(self.normalize.to_valid(text)), self.max_tokens)

    def join(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        """Ragged int32 (B, T) -> the very bytes (B,), UTF-8 or not."""
        return tf.strings.reduce_join(
            tf.ragged.map_flat_values(lambda ids: tf.gather(self.token_bytes, ids), tokens), axis=1
        )

    def detokenize(self, tokens: tf.RaggedTensor) -> tf.Tensor:
        """Ragged int32 (B, T) -> valid UTF-8 strings (B,); bytes cut in half become U+FFFD."""
        return valid_utf8(self.join(tokens))

    def save(self, folder: Path) -> None:
        (folder / self.file_name).write_bytes(self.model_proto)
        self.normalize.save(folder)

    @classmethod
    def load(cls, folder: Path, config: SentencePieceTokenizerConfig) -> SentencePieceTokenizer:
        path, normalize = folder / cls.file_name, Normalizer.load(folder, config)
        try:
            return cls(path.read_bytes(), config.max_tokens, normalize)
        except FileNotFoundError:
            raise damaged(path, "it is missing") from None
        except tf.errors.OpError as error:
            raise damaged(path, f"SentencePiece cannot read it ({error.message})") from error


def _bytes_of(token: int, piece: bytes) -> bytes:
    """What a piece stands for in a text."""
    if token == UNKNOWN:
        return " \u2047 ".encode()  # SentencePiece's own mark
    if token in (PADDING, BEGIN, END):
        return b""
    if byte := _BYTE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    return piece.replace(_BLANK, b" ")


def _coverage(texts: Sequence[str], config: SentencePieceTokenizerConfig) -> float:
    """The share of characters that get pieces of their own, at most half of the vocabulary.

    The rest, rare ones, are written as bytes. Without the limit a corpus of more characters than
    the vocabulary has room for could not be trained on at all.
    """
    counts = collections.Counter(character for text in texts for character in text)
    kept = counts.most_common(config.vocabulary_size // 2)
    # A little less than their share: SentencePiece takes characters until it is reached.
    return min(0.9995, sum(count for _, count in kept) / max(counts.total(), 1) - 1e-6)


def _lines(texts: Sequence[str]):
    """Lines with their break kept: the trainer reads a break only as a symbol of its own."""
    for text in texts:
        yield from text.splitlines(keepends=True)
