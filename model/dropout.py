"""Dropout whose rate is a variable, in four shapes. Axes: B batch, T steps, D features."""

import random
import zlib

import keras
import tensorflow as tf

from model.config.checks import DROPOUT_KINDS


class Dropout(keras.layers.Layer):
    """Zeroes a share `rate` of its input, divides the rest by 1 - rate (Srivastava et al., 2014).

    Call: `x` float (B, ..., D) -> the same shape and dtype; outside of training, and at rate 0,
    exactly `x`. What one draw decides is the `kind`:

    * `elementwise`: one number;
    * `locked`: one feature of a row at every step (Gal & Ghahramani, 2016, sec. 3);
    * `token`: all features of one step, so a whole row of an embedding;
    * `layer`: all that a row's residual branch adds (Huang et al., 2016, eq. 2). Theirs is one
      draw for the batch and scales in prediction; here each row has its own, scaled in training.

    An input without steps, (B, D), has nothing to share: every kind is elementwise there.

    `rate` is a float32 variable that no gradient reaches, in [0, 1), so a schedule can move it
    while training. A layer made with rate 0 draws nothing, which a small network would spend a
    tenth of its update on, before `let_rates_move` has told it that its rate may become another.
    The draws come from a seed generator among the layer's variables. To compute
    the same mask twice, draw `seed = layer.next_seed()` once and call `layer(x, seed=seed,
    training=True)`, which then changes no state.
    """

    def __init__(self, rate: float, kind: str = "elementwise", **kwargs):
        super().__init__(**kwargs)
        if kind not in DROPOUT_KINDS:
            raise ValueError(f"kind must be one of {', '.join(DROPOUT_KINDS)}. Received: {kind!r}")
        self.kind = kind
        self.supports_masking = True  # or Keras warns of a mask that would go no further
        self.may_drop = rate > 0
        self.rate = self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(rate),
            dtype="float32",
            trainable=False,
            autocast=False,  # a share of 0.3 in bfloat16 is another share
            name="dropout_rate",
        )
        state = random.getstate()
        seed = random.randint(1, 10**9)  # as Keras draws it
        if rate == 0:
            # A network without dropout keeps the initial weights that it had before its rates were
            # variables, when such a layer drew no seed; the name keeps two layers' seeds apart.
            random.setstate(state)
            seed ^= zlib.crc32(self.name.encode())
        self.seed_generator = SeedsOfReplicas(seed)

    def next_seed(self) -> tf.Tensor | None:
        """int32 (2,), another one at every call, and on every replica; None: nothing to draw."""
        if not self.may_drop:
            return None
        seed = self.seed_generator.next()  # int64; stateless ops want int32 to run with XLA
        return tf.cast(tf.math.floormod(seed, tf.int32.max - 1), tf.int32)

    def call(self, x, seed=None, training=False):
        if not (training and self.may_drop):
            return x
        seed = self.next_seed() if seed is None else seed
        rate = tf.convert_to_tensor(self.rate)
        # No tf.cond that would save the draws at rate 0: its gradient cannot be vectorised over
        # examples, which private training does.
        uniform = tf.random.stateless_uniform(self._mask_shape(x), seed)
        return tf.where(uniform >= rate, x * tf.cast(1.0 / (1.0 - rate), x.dtype), 0)

    def _mask_shape(self, x):
        shape = tf.shape(x)
        if self.kind == "elementwise" or len(x.shape) < 3:
            return shape
        ones = tf.ones_like(shape)
        if self.kind == "locked":
            return tf.concat([shape[:1], ones[1:-1], shape[-1:]], 0)
        if self.kind == "token":
            return tf.concat([shape[:-1], ones[-1:]], 0)
        return tf.concat([shape[:1], ones[1:]], 0)


class SeedsOfReplicas(keras.random.SeedGenerator):
    """Keras' generator, of which every replica of `tf.distribute` may draw its own seeds.

    Keras keeps the count in a variable that replicas cannot assign. Here each counts for itself,
    all alike, and adds its number to the seed; on one device nothing changes.
    """

    def __init__(self, seed: int, name: str = "seed_generator"):
        super().__init__(seed, name=name)
        with keras.name_scope(self.name):
            self.state: keras.Variable = keras.Variable(
                [seed, 0],
                dtype="int64",
                trainable=False,
                synchronization="on_read",
                aggregation="only_first_replica",
                name="seed_generator_state",
            )

    def next(self, ordered: bool = True):
        seed, context = super().next(ordered), tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return seed
        replica = tf.cast(context.replica_id_in_sync_group, seed.dtype)
        return seed + tf.stack([replica * _BETWEEN_REPLICAS, tf.zeros_like(replica)])


_BETWEEN_REPLICAS = 104_729  # of the seeds that they draw with; a prime, so none meets another's


def draw_apart(model: keras.Model, number: int) -> None:
    """Lets each process draw masks of its own, by its `number`; those of 0 are as ever."""
    for variable in model.non_trainable_variables:
        if variable.name == "seed_generator_state":
            seed, count = variable.numpy()
            variable.assign([seed + number * _BETWEEN_REPLICAS, count])


def let_rates_move(model: keras.Model) -> None:
    """Before a graph is traced in which the rates of `model` follow a schedule."""
    for layer in model._flatten_layers():
        if isinstance(layer, Dropout):
            layer.may_drop = True


def dropout_rates(model: keras.Model) -> list[keras.Variable]:
    """The rates of a network's dropout layers, float32 scalars, in the order of its layers."""
    return [v for v in model.non_trainable_variables if v.name == "dropout_rate"]
