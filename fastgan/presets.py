"""Ready-made experiments as data: each function returns a `Config`, and its docstring gives the source of every value.

TensorFlow 1 and MXNet, which some of the documents use, differ from PyTorch:

- Adam's epsilon is added to the square root of the second moment without bias correction (`adam_eps_hat`).
- Running statistics use other estimates of the variance (biased on MXNet's CPU and in TensorFlow's dense layers) and
  are updated at other times (in the backward pass on MXNet's CPU). Here they follow `nn.BatchNorm2d`: unbiased, and
  updated in each forward pass in training mode. They do not affect training, only sampling.
- The random number generators differ, so equal seeds do not give equal runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgan.config import Config, field_of, nearest
from fastgan.errors import FastganError

if TYPE_CHECKING:
    from fastgan.data.recommend import Choice

PRESETS: dict[str, Callable[[], Config]] = {}
PHOTOGRAPHS = ("celeba", "cifar10")  # sources whose images are valid when mirrored


def get(name: str, **values: Any) -> Config:
    """The preset with this name, with the given fields replaced: `get("dcgan-64", batch=32)`.

    Some presets choose values that depend on the source; `chosen_for` returns them with the reasons.

    Raises:
        FastganError: if the preset or a field does not exist; the message has the most similar names.
    """
    if name not in PRESETS:
        raise FastganError(f"unknown preset {name!r}; {nearest(name, list(PRESETS))}")
    given = {field_of(key): value for key, value in values.items()}
    chosen = {key: value for choice in chosen_for(name, given.get("source")) for key, value in choice.values.items()}
    return PRESETS[name]().replace(preset=name, **{**chosen, **given})


def chosen_for(name: str, source: str | None) -> list[Choice]:
    """Values that a preset chooses for the images of `source` (None for the preset's own source), with the reasons:
    the settings of "own-images" for folder:DIR, and mirroring of photographs in presets that no document defines."""
    if name in ("dcgan-32", "dcgan-128") and (source or PRESETS[name]().data.source) in PHOTOGRAPHS:
        from fastgan.data.recommend import MIRRORED

        return [MIRRORED]
    kind, _, folder = (source or "").partition(":")
    if name != "own-images" or kind != "folder" or not folder:
        return []
    import torch

    from fastgan.data.recommend import recommend

    return recommend(Path(folder).expanduser().absolute(), torch.cuda.is_available())


def preset(function: Callable[[], Config]) -> Callable[[], Config]:
    """Register a function as the preset with its name."""
    PRESETS[function.__name__.replace("_", "-")] = function
    return function


@preset
def digits() -> Config:
    """A small DCGAN on scikit-learn's 1,797 handwritten digits; trains in minutes on two CPU cores.

    The 8x8 images are enlarged to 32x32. The networks have half the width of `dcgan-32`; batch 64; with a moving
    average of G.
    """
    return Config().replace(source="digits", image_size="32", ngf=32, ndf=32, batch=64, ema=0.999, steps=3000)


@preset
def own_images() -> Config:
    """A folder of your own images: `fastgan train --preset own-images --data folder:PATH`.

    `dcgan-64`, with a moving average of G and mirrored images. Image size, widths, augmentation, batch size and length
    are chosen by the number and the size of the images; each choice is printed with its reason. Options that are given
    take precedence.
    """
    return dcgan_64().replace(batch=64, flip=True, ema=0.999)


@preset
def mxnet_dcgan_mnist() -> Config:
    """Apache MXNet's tutorial "Generative Adversarial Network (GAN)" and its Gluon edition, on 64x64x3 MNIST.

    Data: all 70,000 digits (training and test), enlarged bilinearly to 64x64, with the gray channel repeated three
    times, pixels x / 127.5 - 1; `NDArrayIter` fills the last batch from the start. The document shuffles once with seed
    1; here the single epoch is shuffled by the run's seed. The Gluon edition differs only in that it does not round the
    enlarged images to integers.
    Networks: 4x4 kernels, filters 1024-512-256-128 and back, no bias, batch normalization in all hidden layers of the
    generator and in layers 2 to 4 of the discriminator, leaky relu 0.2. `fix_gamma=True`: gamma stays 1;
    eps 1e-5 + 1e-12; momentum 0.9 in MXNet's convention, 0.1 in PyTorch's.
    Initialization: `mx.init.Normal(0.02)` for convolutions; beta 0.
    Noise: N(0, 1), 100 x 1 x 1.
    Loss: `LogisticRegressionOutput` has the gradient sigmoid(x) - label, and the module divides by the batch size: this
    is binary cross-entropy on logits, averaged.
    Optimizer: Adam 2e-4, beta1 0.5, MXNet's defaults beta2 0.999 and epsilon 1e-8 (epsilon hat).
    Updates: one update of D with the sum of its gradients on fakes (label 0) and on reals (label 1); then one update of
    G, for which the updated D evaluates the same fakes with label 1.
    Length: batch 64, one epoch; a picture of fakes beside reals every 50 batches.
    """
    return Config().replace(
        source="mnist", split="all", image_size="64", channels=3, fit="stretch", last_batch="pad", batch=64,
        ngf=128, ndf=128, fix_gamma=True, bn_eps=1e-5 + 1e-12, bn_momentum=0.1,
        real_first=False, fakes="reuse", lr=2e-4, beta1=0.5, adam_eps_hat=True, epochs=1,
        snap=50, pictures="side-by-side")


@preset
def oreilly_gan_mnist() -> Config:
    """O'Reilly's "Generative adversarial networks for beginners" (TensorFlow 1), 28x28x1 MNIST.

    Data: 55,000 digits (TensorFlow's reader reserves the first 5,000 training images for validation), pixels in [0, 1]
    as that reader returns them, although the generator ends in tanh. A batch may cross the end of an epoch.
    Networks: see `fastgan.models.oreilly`. z has 100 values, is reshaped to 2x2x25 and passes through relu. The biases
    of the generator are constants (the document creates them but never adds them). `tf.contrib.layers.batch_norm`: eps
    1e-3, decay 0.999 (0.001 in PyTorch's convention), always with the statistics of the batch, also for samples.
    Initialization: truncated normal, 0.1 in G and 0.02 in D; biases 0.1 in G and 0 in D.
    Noise: N(-1, 1), that is mean -1 and standard deviation 1, as in the document.
    Loss: binary cross-entropy on logits, averaged, real + fake.
    Optimizer: `AdamOptimizer()` with its defaults: 1e-3, betas 0.9 and 0.999, epsilon 1e-8 (epsilon hat).
    Updates: D, then G with fakes generated again from the same z.
    Length: batch 16, 3,000 iterations.
    """
    return Config().replace(
        source="mnist", holdout=5000, image_size="28", channels=1, unit_range=True, last_batch="rollover", batch=16,
        architecture="oreilly", noise_mean=-1.0, bn_eps=1e-3, bn_momentum=1e-3, sample_bn="batch",
        fakes="same-z", lr=1e-3, beta1=0.9, adam_eps_hat=True, steps=3000)


@preset
def d2l_gan_gaussian() -> Config:
    """Dive into Deep Learning, section 17.1 (MXNet Gluon): a linear generator against a 2-D Gaussian.

    Data: 1,000 points X A + b with X ~ N(0, 1), A = [[1, 2], [-0.1, 0.5]], b = [1, 2]; covariance A'A.
    Networks: G is one dense layer; D has dense layers of 5, 3 and 1 units with tanh between them.
    Initialization: `init.Normal(0.02)`; biases 0.
    Noise: N(0, 1), two values.
    Loss: `SigmoidBCELoss`, averaged over the batch by `trainer.step`; D's loss is (real + fake) / 2.
    Optimizer: Adam, 0.05 for D and 0.005 for G, Gluon's default betas 0.9 and 0.999, epsilon 1e-8 (epsilon hat).
    Updates: D, then G with fakes generated again from the same z.
    Length: batch 8, 20 epochs. A scatter plot shows the points and the samples.
    """
    return Config().replace(
        source="gaussian", batch=8, last_batch="keep", architecture="gaussian", nz=2,
        fakes="same-z", d_loss_weight=0.5, lr_d=0.05, lr_g=0.005, beta1=0.9, adam_eps_hat=True,
        epochs=20, snap=125, grid=100)


@preset
def d2l_dcgan_pokemon() -> Config:
    """Dive into Deep Learning, section 17.2 (MXNet Gluon): a DCGAN on 64x64 Pokemon sprites, or any folder of images.

    Data: `Resize(64)` to 64x64 regardless of the aspect ratio, RGB, pixels in [-1, 1]; the last batch is short. For
    exercise 2, Fashion-MNIST: `--data fashion-mnist --channels 1`.
    Networks: n_G = n_D = 64, no bias, batch normalization in every D block including the first; leaky relu 0.2.
    Gluon's BatchNorm: eps 1e-5, momentum 0.9 (0.1 in PyTorch's convention), gamma 1, beta 0.
    Initialization: `init.Normal(0.02)` for convolutions.
    Noise: N(0, 1), 100 x 1 x 1.
    Loss: `SigmoidBCELoss`, averaged over the batch by `trainer.step`; D's loss is (real + fake) / 2.
    Optimizer: Adam 0.005, beta1 0.5, Gluon's default beta2 0.999 and epsilon 1e-8 (epsilon hat).
    Updates: D, then G with fakes generated again from the same z.
    Length: batch 256, 20 epochs; 21 samples in 3 rows of 7 after each epoch.
    """
    return Config().replace(
        source="folder:pokemon", image_size="64", channels=3, fit="stretch", batch=256, last_batch="keep",
        norm_d="all", gamma_std=0.0, fakes="same-z", d_loss_weight=0.5, lr=0.005, beta1=0.5, adam_eps_hat=True,
        epochs=20, grid=21)


@preset
def tf_dcgan_mnist() -> Config:
    """A TensorFlow 1 tutorial, "Deep Convolutional Generative Adversarial Network | Python", 28x28x1 MNIST.

    Where the document's code and text disagree, the preset follows the shapes in the text: strides are 2 (a stride of
    3, as in the code, does not give sizes 14 and 28 from 7, or 7 from 28). The discriminator's second kernel is 5x5
    like all others; the size 10 in the code gives the same output shape with four times the weights. The leaky relu,
    printed without multiplication signs, is max(x, 0.2 x).
    Data: 55,000 digits (the reader reserves 5,000 for validation), pixels in [-1, 1]. A batch may cross the end of an
    epoch.
    Networks: see `fastgan.models.tf_mnist`. `tf.layers` defaults: Glorot-uniform kernels, zero biases, batch
    normalization with eps 1e-3, momentum 0.99 (0.01 in PyTorch's convention).
    Noise: uniform on [-1, 1], 100 values.
    Loss: softmax cross-entropy of two classes, fake 0 and real 1, averaged, real + fake.
    Optimizer: Adam 2e-3, betas 0.5 and 0.999, epsilon 1e-8 (epsilon hat).
    Updates: D, then G with new noise. The document updates the running statistics of G once per step, this preset
    twice.
    Length: batch 128, 10,000 steps; 6 x 6 samples.
    """
    return Config().replace(
        source="mnist", holdout=5000, image_size="28", channels=1, last_batch="rollover", batch=128,
        architecture="tf", noise="uniform", bn_eps=1e-3, bn_momentum=1e-2,
        loss="softmax", fakes="fresh-z", lr=2e-3, beta1=0.5, adam_eps_hat=True, steps=10_000, grid=36)


@preset
def dcgan_64() -> Config:
    """Radford, Metz and Chintala 2015 at 64x64, with the widths of PyTorch's example (ngf = ndf = 64).

    From the paper: batch 128, Adam 2e-4 with beta1 0.5, weights from N(0, 0.02), leaky relu 0.2, batch normalization
    in all layers except G's output and D's input. From PyTorch's example, where it differs from the paper or the paper
    specifies nothing: noise N(0, 1) (uniform in the paper), gamma of batch normalization from N(1, 0.02), PyTorch's
    BatchNorm (eps 1e-5, momentum 0.1) and Adam (epsilon 1e-8, added to the bias-corrected root), one update of D on
    real + fake, then one of G on the same fakes; 25 epochs. Any folder of images: the shorter side is resized to 64,
    then the center is cropped.
    """
    return Config().replace(source="folder:images", image_size="64", batch=128, epochs=25)


@preset
def dcgan_32() -> Config:
    """`dcgan-64` with one layer less, for 32x32 images such as CIFAR-10, with a moving average of G. Photographs are
    mirrored at random."""
    return dcgan_64().replace(source="cifar10", image_size="32", ema=0.999)


@preset
def dcgan_128() -> Config:
    """`dcgan-64` with one layer more and up to 1,024 channels, for 128x128 images, with a moving average of G.
    Photographs of `--data celeba` are mirrored at random."""
    return dcgan_64().replace(image_size="128", batch=64, ema=0.999)
