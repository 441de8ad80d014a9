"""FID, KID and Inception Score as torch-fidelity computes them, on features of InceptionV3.

    fid   |mu_f - mu_r|^2 + tr(S_f + S_r - 2 (S_f S_r)^(1/2)), means and covariances      Heusel et al. 2017
    kid   unbiased squared MMD, kernel (x.y / d + 1)^3, mean and deviation of 100 subsets  Binkowski et al. 2018
    is    exp E[KL(p(y|x) || p(y))], mean and deviation of 10 splits                      Salimans et al. 2016

torch-fidelity itself downloads the weights of the network, and reads weights and its cache by unpickling, which can
execute code. Here the weights must be in a file, which is first checked by `torch.load` with weights_only=True, and
features are cached by `cache.py`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan import extras
from fastgan.data.pixels import to_channels
from fastgan.errors import FastganError
from fastgan.files import StrPath
from fastgan.metrics.cache import cached_tensors
from fastgan.metrics.real_images import RealImages
from fastgan.models.weights import load_error

EXTRACTOR = "inception-v3-compat"  # in torch-fidelity's registry
MAX_REAL_IMAGES, MAX_KID_IMAGES = 50_000, 10_000  # for mean and covariance, and for KID's subsets


class Inception:
    """The metrics `names` of fid, kid and is. Raises `FastganError` without a file of torch-fidelity's weights."""

    def __init__(self, names: list[str], weights: StrPath | None, device: torch.device) -> None:
        extras.load("torch_fidelity", "metrics", f"--metrics {','.join(names)}")
        from torch_fidelity import registry, utils

        self.names, self.device = names, device
        layer = registry.FEATURE_EXTRACTORS_REGISTRY[EXTRACTOR].get_default_feature_layer_for_metric
        self.feature_layer, self.logit_layer = layer("fid"), layer("isc")
        layers = [self.feature_layer] * bool({"fid", "kid"} & set(names)) + [self.logit_layer] * ("is" in names)
        self.weights = find_weights(names, weights)
        try:
            # rejects a file that would execute code, which the constructor below does not
            torch.load(self.weights, map_location="cpu", weights_only=True)
            network = utils.create_feature_extractor(EXTRACTOR, layers, cuda=False, verbose=False,
                                                     feature_extractor_weights_path=str(self.weights))
        except Exception as error:  # damaged files and files of other programs raise many types
            raise FastganError(f"{self.weights} does not contain InceptionV3's weights in torch-fidelity's format "
                               f"({load_error(error)}); expected the file from {_url()}") from error
        self.network = network.to(device, torch.float32)

    def learn(self, reals: RealImages) -> None:
        self.real: dict[str, Tensor] = {}
        if self.names != ["is"]:
            digest = hashlib.sha256(self.weights.read_bytes()).hexdigest()
            self.count = min(MAX_REAL_IMAGES, len(reals.dataset))
            self.real = cached_tensors(f"inception-{reals.key(EXTRACTOR, self.feature_layer, digest)}",
                                       lambda: self._statistics(reals))

    def _statistics(self, reals: RealImages) -> dict[str, Tensor]:
        from torch_fidelity.metric_fid import fid_features_to_statistics

        batches = reals.batches(MAX_REAL_IMAGES, "InceptionV3 on real images")
        features = torch.cat([self.features(images)[self.feature_layer] for images, _ in batches])
        statistics = fid_features_to_statistics(features)
        return {"features": features[:MAX_KID_IMAGES].clone(),
                **{name: torch.from_numpy(value) for name, value in statistics.items()}}

    @torch.no_grad()
    def features(self, images: Tensor) -> dict[str, Tensor]:
        layers = self.network(to_channels(images, 3).to(self.device))
        return self.network.convert_features_tuple_to_dict(tuple(layer.cpu() for layer in layers))

    def compute(self, features: dict[str, Tensor]) -> dict[str, float]:
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        values: dict[str, float] = {}
        if "fid" in self.names:
            real = {name: self.real[name].numpy() for name in ("mu", "sigma")}
            fake = fid_features_to_statistics(features[self.feature_layer])
            values["fid"] = fid_statistics_to_metric(fake, real, verbose=False)[KEY_METRIC_FID]
        if "kid" in self.names:
            both = features[self.feature_layer], self.real["features"]
            size = min(1000, *(len(one) // 2 for one in both))  # smaller than the whole, so that subsets differ
            kid = kid_features_to_metric(*both, kid_subset_size=size, verbose=False)
            values |= {"kid": kid[KEY_METRIC_KID_MEAN], "kid_std": kid[KEY_METRIC_KID_STD]}
        if "is" in self.names:
            score = isc_features_to_metric(features[self.logit_layer])
            values |= {"is": score[KEY_METRIC_ISC_MEAN], "is_std": score[KEY_METRIC_ISC_STD]}
        return values

    def of_reals(self) -> dict[str, float]:
        return {}

    def doubts(self, images: int) -> list[str]:
        if "fid" not in self.names:
            return []
        counts, dimensions = {"fakes": images, "real images": self.count}, len(self.real["mu"])
        few = " and ".join(f"{count} {what}" for what, count in counts.items() if count < dimensions)
        return [f"fid is unreliable: {few} are too few for covariances in {dimensions} dimensions; expected at least "
                f"{dimensions} fakes and real images, or kid"] * bool(few)


def find_weights(names: list[str], given: StrPath | None) -> Path:
    """The file with InceptionV3's weights: `given`, or the file in which torch.hub would store them."""
    place = Path(torch.hub.get_dir(), "checkpoints", Path(_url()).name)
    path = place if given is None else Path(given).expanduser()
    if path.is_file():
        return path
    missing = "no weights of InceptionV3" if given is None else f"no file {given}"
    raise FastganError(f"--metrics {','.join(names)}: {missing}, and fastgan does not download them; expected the file "
                       f"from {_url()} as --metrics-weights FILE or as {place}")


def _url() -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3
