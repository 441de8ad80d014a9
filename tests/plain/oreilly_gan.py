"""O'Reilly's "Generative adversarial networks for beginners" (TensorFlow 1).

Variables: d_wconv1, d_bconv1 ... d_bfc2, g_wconv1, g_bconv1, g_bn1/gamma, g_bn1/beta ... g_bconv4, in TensorFlow's
layouts. The generator's biases are created but never added, so they have no gradient. The moving averages of batch
normalization are neither updated nor read (`is_training=True`, and nothing runs UPDATE_OPS), so they are omitted.
"""

import torch
from torch import Tensor

from tests.plain.formulas import (
    Adam,
    Variables,
    batch_norm,
    gradients,
    sigmoid_cross_entropy,
    tf_conv2d,
    tf_conv2d_transpose,
    watch,
)

BN_EPSILON = 0.001  # tf.contrib.layers.batch_norm
LR, BETA1, BETA2, ADAM_EPSILON = 0.001, 0.9, 0.999, 1e-8  # tf.train.AdamOptimizer()


def scale_pixels(x: Tensor) -> Tensor:
    """`read_data_sets` returns [0, 1]."""
    return x.double() / 255


def avg_pool_2x2(x: Tensor) -> Tensor:
    """2x2 means of an NHWC image with even sides, for which SAME adds no padding."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def discriminator(p: Variables, x_image: Tensor) -> Tensor:
    h = avg_pool_2x2(torch.relu(tf_conv2d(x_image, p["d_wconv1"], 1) + p["d_bconv1"]))
    h = avg_pool_2x2(torch.relu(tf_conv2d(h, p["d_wconv2"], 1) + p["d_bconv2"]))
    h = torch.relu(h.reshape(-1, 7 * 7 * 16) @ p["d_wfc1"] + p["d_bfc1"])
    return h @ p["d_wfc2"] + p["d_bfc2"]


def generator(p: Variables, z: Tensor) -> Tensor:
    h = torch.relu(z.reshape(-1, 2, 2, 25))
    for i, side in enumerate((3, 6, 12), 1):
        h = tf_conv2d_transpose(h, p[f"g_wconv{i}"], 2, side, "SAME").permute(0, 3, 1, 2)
        h = torch.relu(batch_norm(h, p[f"g_bn{i}/gamma"], p[f"g_bn{i}/beta"], BN_EPSILON)).permute(0, 2, 3, 1)
    return torch.tanh(tf_conv2d_transpose(h, p["g_wconv4"], 2, 28, "VALID"))


def train(p: Variables, images: list[Tensor], latents: list[Tensor]) -> Variables:
    """images (N, 28, 28, 1) and z (N, 100), one of each per step."""
    d_vars, g_vars = ([name for name in p if prefix in name] for prefix in ("d_", "g_"))
    watch(p, d_vars + g_vars)
    trainer_d, trainer_g = (Adam(LR, BETA1, BETA2, ADAM_EPSILON, eps_hat=True) for _ in range(2))
    for x, z in zip(images, latents, strict=True):
        dx, dg = discriminator(p, x), discriminator(p, generator(p, z))
        d_loss = sigmoid_cross_entropy(dx, 1).mean() + sigmoid_cross_entropy(dg, 0).mean()
        trainer_d.update(p, gradients(d_loss, p, d_vars))

        g_loss = sigmoid_cross_entropy(discriminator(p, generator(p, z)), 1).mean()
        trainer_g.update(p, gradients(g_loss, p, g_vars))
    return p
