"""Makes the ``.tflite`` files beside this one by the converter of Larq Compute Engine, with the engine's answers.

The same nets as tf2onnx writes them, with Keras' answers, go into ``nets/tf2onnx.zip``.

    pip install larq larq-compute-engine larq-zoo tf_keras tf2onnx    # an environment of their own
    PYTHONPATH=test python -m lce.make

Each net is small, untrained, and normalizes what it sees. One holds plain stacks with bits between layers; three are in
the manner of QuickNet, Bi-Real Net and BinaryDenseNet; one holds what else a converter writes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
PICTURES, SIDE = 24, 32

#: Of each file, the kind of net that it holds, as ``nets/architectures.py`` names them.
KINDS = {
    "plain": "binary stack (BinaryNet, VGG)",
    "quicknet": "QuickNet",
    "bireal": "Bi-Real Net",
    "densenet": "BinaryDenseNet",
    "mixed": "slices, splits, limits, paddings",
}


def pictures(count: int = PICTURES, side: int = SIDE) -> NDArray[np.uint8]:
    """(count, side, side, 3): coloured squares and noise, the same ones each time."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (count, side // 4, side // 4, 3)).repeat(4, 1).repeat(4, 2)
    return np.clip(coarse + rng.integers(-20, 20, coarse.shape), 0, 255).astype(np.uint8)


def make() -> None:
    """Write all files."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import larq as lq
    import larq_compute_engine as lce
    import tensorflow as tf
    import tf2onnx
    import tf_keras as keras
    from larq_compute_engine.tflite.python.interpreter import Interpreter
    from nets.stored import add

    layers = keras.layers
    rng = np.random.default_rng(0)

    def binary(x: Any, filters: int, strides: int = 1, padding: str = "same", pad_values: float = 0.0) -> Any:
        return lq.layers.QuantConv2D(
            filters,
            3,
            strides=strides,
            padding=padding,
            pad_values=pad_values,
            input_quantizer=lq.quantizers.SteSign(),
            kernel_quantizer=lq.quantizers.SteSign(),
            use_bias=False,
        )(x)

    def dense(x: Any, features: int) -> Any:
        return lq.layers.QuantDense(
            features,
            input_quantizer=lq.quantizers.SteSign(),
            kernel_quantizer=lq.quantizers.SteSign(),
            use_bias=False,
        )(x)

    def conv(x: Any, filters: int, kernel: int, strides: int = 1) -> Any:
        return layers.Conv2D(filters, kernel, strides=strides, padding="same", use_bias=False)(x)

    def norm(x: Any) -> Any:
        return layers.BatchNormalization()(x)

    def plain() -> Any:
        image = keras.Input((SIDE, SIDE, 3))
        x = lq.layers.QuantConv2D(
            32, 3, kernel_quantizer=lq.quantizers.SteSign(), padding="same", use_bias=False
        )(image)
        x = norm(layers.MaxPooling2D(2)(x))
        x = norm(layers.MaxPooling2D(2)(binary(x, 48, padding="valid")))
        x = norm(binary(x, 64, pad_values=1.0))
        x = layers.MaxPooling2D(3, 2, padding="same")(norm(binary(x, 64, pad_values=1.0)))
        x = norm(dense(layers.Flatten()(norm(binary(x, 40, padding="valid"))), 64))
        return keras.Model(image, layers.Activation("softmax")(norm(dense(x, 10))))

    def quicknet() -> Any:
        image = keras.Input((SIDE, SIDE, 3))
        x = layers.ReLU()(norm(conv(image, 16, 3, 2)))
        for filters, strides in ((32, 1), (64, 2)):
            x = layers.MaxPooling2D(3, 2, padding="same")(x) if strides == 2 else x
            x = norm(conv(x, filters, 1))
            for _ in range(2):
                x = layers.Add()([x, norm(layers.ReLU()(binary(x, filters, pad_values=1.0)))])
        x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
        return keras.Model(image, layers.Softmax()(layers.Dense(10)(x)))

    def bireal() -> Any:
        image = keras.Input((SIDE, SIDE, 3))
        x = layers.MaxPooling2D(3, 2, padding="same")(norm(conv(image, 32, 5, 2)))
        for filters, strides in ((32, 1), (32, 1), (64, 2), (64, 1)):
            shortcut = x
            if filters != x.shape[-1]:
                shortcut = norm(conv(layers.AveragePooling2D(2, 2, padding="same")(x), filters, 1))
            x = layers.Add()([shortcut, norm(binary(x, filters, strides))])
        return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))

    def densenet() -> Any:
        image = keras.Input((SIDE, SIDE, 3))
        x = norm(conv(image, 24, 3, 2))
        for _ in range(2):
            for _ in range(2):
                x = layers.Concatenate()([x, binary(norm(x), 16)])
            x = layers.PReLU(shared_axes=[1, 2])(layers.MaxPooling2D(2)(norm(x)))
            x = layers.DepthwiseConv2D(3, padding="same")(conv(layers.ReLU(6.0)(x), 32, 1))
        x = layers.Flatten()(layers.AveragePooling2D(4)(layers.ReLU()(norm(x))))
        return keras.Model(image, layers.Dense(10)(x))

    def mixed() -> Any:
        image = keras.Input((SIDE, SIDE, 3))
        x = norm(conv(tf.pad(image, [[0, 0], [1, 2], [2, 1], [0, 0]]), 48, 4, 3))
        first, second, third = tf.split(x, 3, axis=-1)
        x = tf.concat([tf.nn.leaky_relu(first, 0.2), tf.maximum(second, -0.5), tf.minimum(third, 0.75)], -1)
        x = x[:, ::2, ::2, 8:40] / 3.0 - tf.clip_by_value(norm(binary(x, 32, 2)), -1.0, 1.0)
        x = tf.nn.relu6(norm(binary(-x, 64))) + tf.pad(x, [[0, 0], [0, 0], [0, 0], [16, 16]])
        x = tf.reduce_mean(x, [1, 2], keepdims=True)
        x = tf.squeeze(layers.Conv2D(10, 1)(x), [1, 2])
        return keras.Model(image, tf.nn.log_softmax(x))

    def as_onnx(net: Any) -> bytes:
        taken = [tf.TensorSpec((1, SIDE, SIDE, 3), tf.float32, name="image")]
        function = tf.function(lambda image: net(image, training=False))
        proto, _ = tf2onnx.convert.from_function(function, input_signature=taken, opset=17)
        return bytes(proto.SerializeToString())

    images, graphs, by_keras = pictures(), {}, {}
    x = images.astype(np.float32) / np.float32(127.5) - 1
    for build in (plain, quicknet, bireal, densenet, mixed):
        keras.utils.set_random_seed(3)
        net = build()
        norms = [layer for layer in net.layers if isinstance(layer, layers.BatchNormalization)]
        for layer in norms:
            layer.momentum = 0.0  # takes the statistics of one batch
            count = layer.get_weights()[0].size
            gamma = rng.uniform(0.5, 1.5, count) * rng.choice([-1, 1], count, p=[0.2, 0.8])
            layer.set_weights([gamma, rng.normal(0, 0.3, count), np.zeros(count), np.ones(count)])
        net(x, training=True)
        last = [layer for layer in net.layers if getattr(layer, "bias", None) is not None][-1:]
        for layer in last:  # so that not one class is always the largest
            logits = keras.Model(net.input, layer.output)(x).numpy().reshape(PICTURES, -1)
            kernel, _ = layer.get_weights()
            layer.set_weights([kernel / logits.std(), -logits.mean(axis=0) / logits.std()])
        name = KINDS[build.__name__]
        graphs[name], by_keras[name] = as_onnx(net), net(x, training=False).numpy()
        content = lce.convert_keras_model(net)
        (FOLDER / f"{build.__name__}.tflite").write_bytes(content)
        answers = np.asarray(Interpreter(content).predict(x), np.float32)
        np.save(FOLDER / f"{build.__name__}.npy", answers)
        print(build.__name__, len(content), "classes:", np.bincount(answers.argmax(axis=1)))
    add("tf2onnx", graphs, by_keras)


if __name__ == "__main__":
    make()
