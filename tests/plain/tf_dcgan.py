"""A TensorFlow 1 tutorial, "Deep Convolutional Generative Adversarial Network | Python".

The printed strides of 3 contradict the shapes in the text, 7 -> 14 -> 28 and back, and its reshape to 7 * 7 * 128;
strides here are 2. Kernel sizes are those of the variables: the printed code has 10x10 for Discriminator/conv2d_1.

Variables: the names of tf.layers in the scopes Generator and Discriminator (dense/kernel, dense/bias,
batch_normalization/gamma, conv2d_transpose_1/kernel ...), in TensorFlow's layouts. The moving averages here are updated
in every pass; the document's graph updates the generator's only with its own update.
"""

import torch
from torch import Tensor

from tests.plain.formulas import (
    Adam,
    Variables,
    batch_norm,
    gradients,
    tf_conv2d,
    tf_conv2d_transpose,
    watch,
)

BN_EPSILON, BN_MOMENTUM = 1e-3, 1 - 0.99  # tf.layers.batch_normalization keeps 0.99 of the old value
LR, BETA1, BETA2 = 0.002, 0.5, 0.999
ADAM_EPSILON = 1e-8  # tf.train.AdamOptimizer


def scale_pixels(x: Tensor) -> Tensor:
    return x.double() / 255 * 2.0 - 1.0


def leakyrelu(x: Tensor, alpha: float = 0.2) -> Tensor:
    return 0.5 * x + 0.5 * abs(x) - 0.5 * alpha * abs(x) + 0.5 * x * alpha


def norm(p: Variables, x: Tensor, name: str) -> Tensor:
    """Batch normalization over the last axis, as in tf.layers."""
    gamma, beta, mean, var = (p[f"{name}/{k}"] for k in ("gamma", "beta", "moving_mean", "moving_variance"))
    return batch_norm(x.movedim(-1, 1), gamma, beta, BN_EPSILON, mean, var, BN_MOMENTUM).movedim(1, -1)


def generator(p: Variables, x: Tensor) -> Tensor:
    v = {name.removeprefix("Generator/"): value for name, value in p.items()}
    x = x @ v["dense/kernel"] + v["dense/bias"]
    x = torch.relu(norm(v, x, "batch_normalization")).reshape(-1, 7, 7, 128)
    x = tf_conv2d_transpose(x, v["conv2d_transpose/kernel"], 2, 14, "SAME") + v["conv2d_transpose/bias"]
    x = torch.relu(norm(v, x, "batch_normalization_1"))
    x = tf_conv2d_transpose(x, v["conv2d_transpose_1/kernel"], 2, 28, "SAME") + v["conv2d_transpose_1/bias"]
    return torch.tanh(x)


def discriminator(p: Variables, x: Tensor) -> Tensor:
    v = {name.removeprefix("Discriminator/"): value for name, value in p.items()}
    x = tf_conv2d(x, v["conv2d/kernel"], 2) + v["conv2d/bias"]
    x = leakyrelu(norm(v, x, "batch_normalization"))
    x = tf_conv2d(x, v["conv2d_1/kernel"], 2) + v["conv2d_1/bias"]
    x = leakyrelu(norm(v, x, "batch_normalization_1")).reshape(-1, 7 * 7 * 128)
    x = x @ v["dense/kernel"] + v["dense/bias"]
    x = leakyrelu(norm(v, x, "batch_normalization_2"))
    return x @ v["dense_1/kernel"] + v["dense_1/bias"]


def cross_entropy(logits: Tensor, label: int) -> Tensor:
    """Mean of -log softmax(logits)[label]."""
    top = logits.detach().amax(1, keepdim=True)
    log_sum = torch.log(torch.exp(logits - top).sum(1)) + top[:, 0]
    return (log_sum - logits[:, label]).mean()


def train(p: Variables, images: list[Tensor], noises: list[tuple[Tensor, Tensor]]) -> Variables:
    """images (N, 28, 28, 1) and two noises (N, 100), the discriminator's and the generator's, per step."""
    learned = [name for name in p if "moving" not in name]
    gen_vars, disc_vars = ([name for name in learned if name.startswith(scope)] for scope in "GD")
    watch(p, learned)
    optimizer_gen, optimizer_disc = (Adam(LR, BETA1, BETA2, ADAM_EPSILON, eps_hat=True) for _ in range(2))
    for x, (noise_disc, noise_gen) in zip(images, noises, strict=True):
        fake = generator(p, noise_disc).detach()
        disc_loss = cross_entropy(discriminator(p, x), 1) + cross_entropy(discriminator(p, fake), 0)
        optimizer_disc.update(p, gradients(disc_loss, p, disc_vars))

        gen_loss = cross_entropy(discriminator(p, generator(p, noise_gen)), 1)
        optimizer_gen.update(p, gradients(gen_loss, p, gen_vars))
    return p
