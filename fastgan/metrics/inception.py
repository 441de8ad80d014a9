"""FID, KID and Inception Score as torch-fidelity computes them, on features of InceptionV3.

    fid   |mu_f - mu_r|^2 + tr(S_f + S_r - 2 (S_f S_r)^(1/2)), means and covariances      Heusel et al. 2017
    kid   unbiased squared MMD, kernel (x.y / d + 1)^3, mean and deviation of 100 subsets  Binkowski et al. 2018
    is    exp E[KL(p(y|x) || p(y))], mean and deviation of 10 parts                       Salimans et al. 2016

torch-fidelity would download the network's weights, and reads weights and its cache with an unpickler that runs code:
here a file has to be there, is first read by one that does not, and what is cached is fastgan's own (`kept.py`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan.data.pixels import to_channels
from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath
from fastgan.metrics.kept import kept
from fastgan.metrics.reals import Reals
from fastgan.models.weights import load_error

EXTRACTOR = "inception-v3-compat"  # in torch-fidelity's registry
MOST_REALS, MOST_OF_KID = 50_000, 10_000  # whose statistics are taken; whose features are kept for KID's subsets


class Inception:
    """`names` among fid, kid and is, with torch-fidelity's weights from a file; raises `FastganError` without one."""

    def __init__(self, names: list[str], weights: StrPath | None, device: torch.device) -> None:
        try:
            from torch_fidelity import registry, utils
        except ImportError as error:
            raise FastganError(f"--metrics {','.join(names)}: torch-fidelity cannot be imported ({first_line(error)}); "
                               "expected it installed: pip install torch-fidelity") from error
        self.names, self.device = names, device
        layer = registry.FEATURE_EXTRACTORS_REGISTRY[EXTRACTOR].get_default_feature_layer_for_metric
        self.features, self.logits = layer("fid"), layer("isc")
        layers = [self.features] * bool({"fid", "kid"} & set(names)) + [self.logits] * ("is" in names)
        self.weights = find_weights(names, weights)
        try:
            # refuses a file that would run code, which the constructor below would let do so
            torch.load(self.weights, map_location="cpu", weights_only=True)
            network = utils.create_feature_extractor(EXTRACTOR, layers, cuda=False, verbose=False,
                                                     feature_extractor_weights_path=str(self.weights))
        except Exception as error:  # whatever a foreign file, or its unpickler, raises
            raise FastganError(f"{self.weights} does not hold InceptionV3's weights as torch-fidelity has them "
                               f"({load_error(error)}); expected the file from {_address()}") from error
        self.network = network.to(device, torch.float32)

    def learn(self, reals: Reals) -> None:
        self.real: dict[str, Tensor] = {}
        if self.names != ["is"]:
            digest = hashlib.sha256(self.weights.read_bytes()).hexdigest()
            self.count = min(MOST_REALS, len(reals.dataset))
            self.real = kept(f"inception-{reals.key(EXTRACTOR, self.features, digest)}",
                             {"features": ("n", "d"), "mu": ("d",), "sigma": ("d", "d")}, lambda: self._learn(reals))

    def _learn(self, reals: Reals) -> dict[str, Tensor]:
        from torch_fidelity.metric_fid import fid_features_to_statistics

        batches = reals.batches(MOST_REALS, "InceptionV3 on real images")
        features = torch.cat([self.see(images)[self.features] for images, _ in batches])
        statistics = fid_features_to_statistics(features)
        return {"features": features[:MOST_OF_KID].clone(),
                **{name: torch.from_numpy(value) for name, value in statistics.items()}}

    @torch.no_grad()
    def see(self, images: Tensor) -> dict[str, Tensor]:
        layers = self.network(to_channels(images, 3).to(self.device))
        return self.network.convert_features_tuple_to_dict(tuple(layer.cpu() for layer in layers))

    def tell(self, seen: dict[str, Tensor]) -> dict[str, float]:
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

        told: dict[str, float] = {}
        if "fid" in self.names:
            real = {name: self.real[name].numpy() for name in ("mu", "sigma")}
            found = fid_statistics_to_metric(fid_features_to_statistics(seen[self.features]), real, verbose=False)
            told["fid"] = found[KEY_METRIC_FID]
        if "kid" in self.names:
            both = seen[self.features], self.real["features"]
            # subsets of fewer than all, so that they differ
            size = min(1000, *(len(features) // 2 for features in both))
            found = kid_features_to_metric(*both, kid_subset_size=size, verbose=False)
            told |= {"kid": found[KEY_METRIC_KID_MEAN], "kid_std": found[KEY_METRIC_KID_STD]}
        if "is" in self.names:
            found = isc_features_to_metric(seen[self.logits])
            told |= {"is": found[KEY_METRIC_ISC_MEAN], "is_std": found[KEY_METRIC_ISC_STD]}
        return told

    def of_reals(self) -> dict[str, float]:
        return {}

    def doubts(self, images: int) -> list[str]:
        if "fid" not in self.names:
            return []
        counts, dimensions = {"fakes": images, "reals": self.count}, len(self.real["mu"])
        few = " and ".join(f"{count} {what}" for what, count in counts.items() if count < dimensions)
        return [f"fid says little: it compares covariances in {dimensions} dimensions, of which {few} cannot tell; "
                f"expected {dimensions} images or more of both, or kid"] * bool(few)


def find_weights(names: list[str], given: StrPath | None) -> Path:
    """The file of InceptionV3's weights: the one that was named, or where torch.hub would have put it."""
    place = Path(torch.hub.get_dir(), "checkpoints", Path(_address()).name)
    path = place if given is None else Path(given).expanduser()
    if path.is_file():
        return path
    missing = "InceptionV3's weights are not here" if given is None else f"no file {given}"
    raise FastganError(f"--metrics {','.join(names)}: {missing}, and fastgan downloads none; expected the file from "
                       f"{_address()} as --metrics-weights FILE or as {place}")


def _address() -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3
