"""Metrics of generated images: correct for images with known results, cached, without effect on training.

InceptionV3's weights are not part of the project: its file is read with random weights, and metrics are computed from
the features of a small network, also by torch-fidelity with the same features.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch_fidelity import FeatureExtractorBase, feature_extractor_inceptionv3, registry

from fastgan import cli, presets
from fastgan.config import Config
from fastgan.data import open_dataset
from fastgan.errors import FastganError
from fastgan.metrics import Metrics, classifier, inception
from fastgan.metrics.real_images import RealImages
from fastgan.trainer import Trainer, checkpoint, evaluate
from fastgan.trainer.log import TAGS, read_stats

CPU = torch.device("cpu")
DIGITS = presets.get("digits", image_size="16").data


class Tiny(FeatureExtractorBase):
    """Features of 8 fixed random projections of 4x4 pixels, and logits of 5."""

    width = 8

    def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
        super().__init__(name, features_list)
        weights = torch.randn(48, self.width + 5, generator=torch.Generator().manual_seed(0)) / 300
        self.register_buffer("weights", weights)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "eight", "five"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "five" if metric == "isc" else "eight"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        small = nn.functional.adaptive_avg_pool2d(images.float(), 4).flatten(1) @ self.weights
        layers = {"eight": small[:, :-5], "five": small[:, -5:]}
        return tuple(layers[name] for name in self.features_list)


registry.register_feature_extractor("tiny", Tiny)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test downloads anything."""
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", refused)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "metrics"


@pytest.fixture
def tiny_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Replace InceptionV3 by the small network, and return a weights file for it."""
    monkeypatch.setattr(inception, "EXTRACTOR", "tiny")
    torch.save({}, tmp_path / "tiny.pth")
    return str(tmp_path / "tiny.pth")


def metrics(names: str, weights: str | None = None, config: Any = DIGITS, images: int = 500) -> Metrics:
    made = Metrics(names, open_dataset(config), config, images=images, weights=weights, device=CPU)
    made.learn()
    return made


class Drawn:
    """Replaces a generator: image i of a uint8 tensor (N, C, H, W) for seed i."""

    unit_range = True

    def __init__(self, images: Tensor, classes: tuple[str, ...] = ()) -> None:
        self.images, self.classes = images, classes
        self.noise = SimpleNamespace(from_seeds=torch.tensor)
        self.chunks: list[int] = []
        self.labels: list[int] = []

    def draw(self, seeds: Tensor, labels: Tensor | None) -> Tensor:
        self.chunks.append(len(seeds))
        self.labels += [] if labels is None else labels.tolist()
        return self.images[seeds].float() / 255


@pytest.fixture(scope="module")
def score() -> Metrics:
    """The score, with a classifier that is trained once with the defaults."""
    return metrics("score")


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """500 real digits from the classifier's training data, and their labels."""
    batches = list(RealImages(open_dataset(DIGITS), DIGITS).batches(20_000, "digits"))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))  # type: ignore[arg-type]
    return images[-500:], labels[-500:]


def of(measured: Metrics, images: Tensor) -> dict[str, float]:
    repeated = images[torch.arange(measured.images) % len(images)]
    return measured.of(Drawn(repeated))  # type: ignore[arg-type]


def test_the_classifier_knows_the_digits(score):
    found = score.of_reals()
    assert found["score_accuracy"] > 0.93 and found["score_confidence"] > 0.9
    assert (found["score_classes"], found["score_diversity"], found["score_novelty"]) == (10, 1, 1)


def test_no_doubts_about_a_classifier_that_knows_the_digits(score):
    assert score.doubts() == []


def test_a_classifier_that_guesses_is_doubted(own_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 5)
    config = presets.get("digits", source=few_images(tmp_path / "images", 2, 120), image_size="16", channels=1).data
    (words,) = metrics("score", config=config).doubts()
    assert words.startswith("score is unreliable: the accuracy of its classifier is ")
    assert "the share of the most frequent class is 50%" in words


def test_fid_of_fewer_images_than_dimensions_is_doubted(tiny_weights, own_cache, monkeypatch):
    monkeypatch.setattr(Tiny, "width", 600)
    (words,) = metrics("fid", tiny_weights, images=500).doubts()
    assert "500 fakes are too few for covariances in 600 dimensions" in words
    assert metrics("fid", tiny_weights, images=600).doubts() == metrics("kid,is", tiny_weights).doubts() == []


def test_the_bars_of_measures_move_image_by_image(score, digits, monkeypatch):
    """The progress bars advance with each image, not only after hundreds."""
    sizes: list[int] = []
    monkeypatch.setattr(score.metrics[0], "features", lambda images: sizes.append(len(images)) or {"x": torch.zeros(1)})
    monkeypatch.setattr(score.metrics[0], "compute", lambda features: {})
    of(score, digits[0])
    assert sum(sizes) == 500 and max(sizes) == 32


def test_score_of_copies(score, digits):
    found = of(score, digits[0])
    assert found["score_confidence"] > 0.95 and found["score_classes"] == 10 and found["score_diversity"] > 0.8
    assert found["score_novelty"] < 0.01


def test_score_of_one_image_again_and_again(score, digits):
    found = of(score, digits[0][:1])
    assert found["score_classes"] == 1 and found["score_diversity"] < 0.01


def test_score_of_one_image_a_class(score, digits):
    """All classes are covered, but there is no diversity."""
    found = of(score, torch.stack([digits[0][digits[1] == c][0] for c in range(10)]))
    assert found["score_classes"] >= 8 and found["score_diversity"] < 0.01


def test_score_of_some_classes(score, digits):
    found = of(score, digits[0][digits[1] < 3])
    assert found["score_classes"] == 3 and 0.2 < found["score_diversity"] < 0.35


def test_score_of_noise(score):
    noise = torch.randint(0, 256, (500, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert of(score, noise)["score_novelty"] > 2


def test_a_class_is_covered_from_a_tenth_of_its_share(score, digits):
    """A tenth of the real images are sevens: at least 5 of 500 fakes must be."""
    images, labels = digits
    sure = score.metrics[0].features(images)["probabilities"].argmax(1)
    zero, seven = (images[(labels == c) & (sure == c)][:1] for c in (0, 7))
    for count, classes in ((3, 1), (8, 2)):
        assert of(score, torch.cat([seven] * count + [zero] * (500 - count)))["score_classes"] == classes


@pytest.mark.parametrize("shape", [(3, 64, 96), (1, 28, 28), (4, 20, 17)], ids=str)
def test_score_of_images_of_any_shape(shape, own_cache, tmp_path, monkeypatch):
    """Two classes that differ in brightness."""
    monkeypatch.setattr(classifier, "STEPS", 40)
    channels, height, width = shape
    levels = np.random.default_rng(0).integers(0, 80, (120, height, width, channels))
    labels = np.arange(120) % 2
    np.savez(tmp_path / "images.npz", images=(levels + 150 * labels[:, None, None, None]).astype(np.uint8),
             labels=labels)
    config = presets.get("dcgan-64", source=f"npz:{tmp_path / 'images.npz'}", image_size=f"{height}x{width}").data
    assert metrics("score", config=config).of_reals()["score_accuracy"] == 1


def test_the_classifier_is_cached(own_cache, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 5)
    first = metrics("score").of_reals()
    (path,) = own_cache.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(classifier, "_train", None)
        assert metrics("score").of_reals() == first
    path.write_bytes(path.read_bytes()[:1000])
    torch.rand(1)  # other draws in between do not matter
    assert metrics("score").of_reals() == first, "damaged: trained again, to the same"
    metrics("score", config=presets.get("digits", image_size="16", holdout=100).data)
    assert len(list(own_cache.iterdir())) == 2, "other images have another classifier"


def test_another_folder_of_the_same_names_and_sizes_has_a_classifier_of_its_own(own_cache, monkeypatch, tmp_path):
    """Streamed: all parts of their fingerprints are equal."""
    monkeypatch.setattr(classifier, "STEPS", 5)
    reals = open_dataset(DIGITS).data[:120].squeeze(1).numpy()  # type: ignore[attr-defined]
    found = []
    for name, images in (("digits", reals), ("negatives", 255 - reals)):
        for i, pixels in enumerate(images):
            path = tmp_path / name / f"{i % 2}" / f"{i}.png"
            path.parent.mkdir(exist_ok=True, parents=True)
            Image.fromarray(pixels).save(path, compress_level=0)
            os.utime(path, (1, 1))
        config = presets.get("digits", source=f"folder:{tmp_path / name}", image_size="16", cache_gb=1e-7,
                             workers=0).data
        found.append((open_dataset(config).fingerprint, metrics("score", config=config).of_reals()))
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]
    assert len(list(own_cache.iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 5)
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTGAN_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="metrics cannot be cached and are computed again in the next run: "):
        assert metrics("score").of_reals()["score_novelty"] == 1


def test_fid_kid_and_is_are_those_of_torch_fidelity(tiny_weights, own_cache, digits):
    measured = metrics("fid,kid,is", tiny_weights, images=400)
    fakes = (digits[0].float() * 0.8).round().to(torch.uint8)[:400]
    reals = torch.cat([images for images, _ in RealImages(open_dataset(DIGITS), DIGITS).batches(20_000, "digits")])
    theirs = torch_fidelity.calculate_metrics(
        input1=AsDataset(fakes), input2=AsDataset(reals), fid=True, kid=True, isc=True, feature_extractor="tiny",
        kid_subset_size=200, cuda=False, cache=False, save_cpu_ram=True, verbose=False)
    names = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean",
             "kid_std": "kernel_inception_distance_std", "is": "inception_score_mean", "is_std": "inception_score_std"}
    found = of(measured, fakes)
    assert found == pytest.approx({ours: theirs[name] for ours, name in names.items()}, rel=1e-4)
    assert found["fid"] > 100 * abs(of(metrics("fid", tiny_weights, images=len(reals)), reals)["fid"])


class AsDataset(torch.utils.data.Dataset):
    def __init__(self, images: Tensor) -> None:
        self.images = images.expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


def test_statistics_of_the_reals_are_kept(tiny_weights, own_cache, monkeypatch, digits):
    first = of(metrics("fid,kid", tiny_weights), digits[0])
    assert len(list(own_cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(RealImages, "batches", None)
        assert of(metrics("fid,kid", tiny_weights), digits[0]) == first
    torch.save({"other": torch.ones(1)}, tiny_weights)
    metrics("fid", tiny_weights)
    assert len(list(own_cache.iterdir())) == 2, "another network has other statistics"


def test_nothing_is_asked_of_the_reals_for_is_alone(tiny_weights, own_cache, monkeypatch, digits):
    monkeypatch.setattr(RealImages, "batches", None)
    assert of(metrics("is", tiny_weights), digits[0]).keys() == {"is", "is_std"}
    assert not own_cache.exists()


def test_weights_of_inception(tmp_path, monkeypatch):
    """Random ones, in the real file's format."""
    network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    torch.save({}, tmp_path / "empty.pth")
    with monkeypatch.context() as patch:
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        made = network("any", ["2048"], str(tmp_path / "empty.pth"))
    torch.save(made.state_dict(), tmp_path / "weights.pth")
    read = inception.Inception(["fid", "is"], str(tmp_path / "weights.pth"), CPU)
    seen = read.features(torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8))
    assert {name: (*layer.shape,) for name, layer in seen.items()} == {"2048": (3, 2048), "logits_unbiased": (3, 1008)}
    assert torch.equal(read.network.fc.weight, made.fc.weight)


def test_weights_where_torch_hub_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    name = Path(feature_extractor_inceptionv3.URL_INCEPTION_V3).name
    with pytest.raises(FastganError, match=f"fastgan does not download them; expected the file from .*{name} as "
                                           f"--metrics-weights FILE or as {tmp_path}/checkpoints/{name}"):
        inception.find_weights(["fid"], None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / name).touch()
    assert inception.find_weights(["fid"], None) == tmp_path / "checkpoints" / name


class Evil:
    """A pickle that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda path: path.write_text("junk\n"), "it is damaged or of another type"),
    "empty": (lambda path: path.touch(), "it is damaged or of another type"),
    "other tensors": (lambda path: torch.save({"main.0.weight": torch.ones(3)}, path),
                      "it has no Conv2d_1a_3x3.conv.weight"),
    "code": (lambda path: torch.save({"fc.weight": Evil(path.with_name("executed"))}, path),
             "it contains code (getattr), which fastgan does not execute"),
}


@pytest.mark.parametrize(("write", "reason"), WRONG.values(), ids=WRONG)
def test_a_file_that_holds_other_things(write, reason, tmp_path):
    write(tmp_path / "weights.pth")
    with pytest.raises(FastganError) as caught:
        inception.Inception(["fid"], str(tmp_path / "weights.pth"), CPU)
    assert f"weights.pth does not contain InceptionV3's weights in torch-fidelity's format ({reason}); expected" in str(
        caught.value)
    assert not (tmp_path / "executed").exists()


def few_images(folder: Path, classes: int, count: int) -> str:
    for i in range(count):
        (folder / f"{i % classes}").mkdir(exist_ok=True, parents=True)
        Image.effect_noise((16, 16), 60 + i).save(folder / f"{i % classes}" / f"{i}.png")
    return f"folder:{folder}"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"metrics": "fid,scor"}, "--metrics fid,scor: unknown 'scor'; expected some of fid, kid, is, score, as "
                                         "in --metrics fid,kid; did you mean score?"),
    "nothing like it": ({"metrics": "xyz"}, "expected some of fid, kid, is, score, as in --metrics fid,kid"),
    "points": ({"preset": "d2l-gan-gaussian", "source": "gaussian", "metrics": "fid"},
               "--metrics fid: gaussian has points; expected images, or no --metrics"),
    "few fakes": ({"metrics": "score", "metrics_images": 99},
                  "--metrics-images 99: expected a whole number of at least 100"),
    "no weights": ({"metrics": "kid", "metrics_weights": "nowhere.pth"},
                   f"--metrics kid: no file {Path('nowhere.pth').absolute()}, and"),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_measured_is_said_before_training(tiny, tmp_path, values, message):
    with pytest.raises(FastganError) as caught:
        Trainer(tiny(**{"preset": "digits", **values}))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("classes", "count", "message"), [
    (2, 99, "images has 99 images, too few to compare with; expected at least 100"),
    (1, 100, "--metrics score: images has 1 classes, but a classifier needs labels; expected 2 or more")])
def test_data_that_cannot_be_measured(tiny, tmp_path, classes, count, message):
    with pytest.raises(FastganError) as caught:
        Trainer(tiny(source=few_images(tmp_path / "images", classes, count), channels=1, metrics="score"))
    assert message in str(caught.value)


def test_without_torch_fidelity(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(FastganError, match=r"--metrics fid,is: torch_fidelity .*pip install torch-fidelity"):
        Trainer(tiny(metrics="fid,is"))
    Trainer(tiny(metrics="score"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Iterator[None]:
    """A classifier that is trained quickly."""
    monkeypatch.setattr(classifier, "STEPS", 5)
    yield


def final_state(folder: Path) -> Any:
    state = checkpoint.read_newest(folder / "checkpoints")[0]
    return {name: state["step"][name] for name in ("generator", "discriminator", "ema")}, state["rng"]


def test_a_run_writes_down_what_it_measures_and_is_the_same_for_it(tiny, quick, tiny_weights):
    config = tiny(steps=5, tensorboard=True)
    measured = config.replace(metrics="score,fid,kid", metrics_images=100, metrics_weights=tiny_weights)
    plain, folder = Trainer(config).fit(), Trainer(measured).fit()
    (nets, rng), (same_nets, same_rng) = final_state(plain), final_state(folder)
    assert torch.equal(rng, same_rng)
    assert all(torch.equal(nets[part][key], same_nets[part][key]) for part in nets for key in nets[part])
    records = [record for record in read_stats(folder / "stats.jsonl") if "fid" in record]
    assert [record["step"] for record in records] == [3, 5], "each snapshot, and the end"
    keys = {"fid", "kid", "kid_std", "score_confidence", "score_classes", "score_diversity", "score_novelty"}
    assert all(record.keys() - {"alerts"} == keys | {"step"} for record in records)
    events = EventAccumulator(str(folder)).Reload()
    for key in keys - {"kid_std"}:
        assert [point.value for point in events.Scalars(TAGS[key])] == pytest.approx([r[key] for r in records])


def test_the_moving_average_is_measured(tiny, quick):
    trainer = Trainer(tiny(metrics="score", metrics_images=100, ema=0.9))
    folder = trainer.fit()
    assert trainer.metrics is not None and trainer.step.ema is not None
    assert trainer.metrics.of(trainer.pretrained()).items() <= read_stats(folder / "stats.jsonl")[-1].items()
    assert trainer.pretrained().generator is trainer.step.ema.module


def test_measuring_can_begin_with_a_resume(tiny, quick):
    config: Config = tiny(steps=3)
    folder = Trainer(config).fit()
    Trainer.resume(folder, config.replace(steps=6, metrics="score", metrics_images=100)).fit()
    assert [r["step"] for r in read_stats(folder / "stats.jsonl") if "score_classes" in r] == [6]


def test_alerts_are_said_and_kept(tiny, capsys, monkeypatch):
    monkeypatch.setattr("fastgan.trainer.alerts.Alerts._collapsed", lambda self: "they are all alike")
    folder = Trainer(tiny(tensorboard=True)).fit()
    assert [r["alerts"] for r in read_stats(folder / "stats.jsonl") if "alerts" in r] == [
        {"mode collapse": "they are all alike"}]
    (told,) = EventAccumulator(str(folder)).Reload().Tensors("Alerts/mode collapse/text_summary")
    assert told.tensor_proto.string_val == [b"they are all alike"]
    assert capsys.readouterr().err.count("fastgan: they are all alike") == 1


def test_chunks_have_no_remainder_and_labels_are_as_frequent_as_the_reals(tiny, quick, tmp_path):
    (tmp_path / "images").mkdir()
    few_images(tmp_path / "images" / "many", 1, 90)
    few_images(tmp_path / "images" / "few", 1, 30)
    config = tiny(source=f"folder:{tmp_path / 'images'}", channels=1).data
    source = Drawn(torch.zeros(257, 1, 16, 16, dtype=torch.uint8), ("few", "many"))
    metrics("score", config=config, images=257).of(source)  # type: ignore[arg-type]
    assert source.chunks == [129, 128]
    assert 0.6 < np.mean(source.labels) < 0.9


def test_evaluate(tiny, quick, capsys):
    folder = Trainer(tiny()).fit()
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder), "--images", "100", "--device", "cpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "100 fakes against digits: 1797 images, 1x16x16, 10 classes, cached in 0.5 MB"
    (found,) = json.loads((folder / "metrics.json").read_text())["measured"]
    assert (found["metrics"], found["images"], found["step"]) == ("score", 100, 6), "its data has labels"
    row = next(line.split() for line in out if line.startswith("score_confidence"))
    assert row[1:3] == [f"{found[who]['score_confidence']:.4g}" for who in ("fakes", "reals")]
    assert out[-1] == f"metrics: {folder / 'metrics.json'}"


def test_what_was_measured_before_stays_until_it_is_measured_anew(tiny, quick, tiny_weights):
    folder = Trainer(tiny(steps=3)).fit()
    before = {"data": "digits", "images": 500, "metrics": "score,fid", "reals": {"score_accuracy": 1},
              "fakes": {"score_novelty": 2, "fid": 3}}
    (folder / "metrics.json").write_text(json.dumps(before))

    def measured() -> list[dict[str, Any]]:
        return json.loads((folder / "metrics.json").read_text())["measured"]

    score = evaluate.evaluate(folder, "score", images=100)
    assert measured() == [before | {"fakes": {"fid": 3}, "reals": {}}, score]
    Trainer.resume(folder, tiny(steps=6)).fit()
    fid = evaluate.evaluate(folder, "fid", images=100, weights=tiny_weights)
    assert measured() == [score, fid] and (score["step"], fid["step"]) == (3, 6)
    (folder / "metrics.json").write_text('{"measured": [3]}')
    assert evaluate.evaluate(folder, "score", images=100)["metrics"] == "score" and len(measured()) == 1


@pytest.mark.parametrize(("args", "message"), [
    (["--metrics", "kdi"], "--metrics kdi: unknown 'kdi'"),
    (["--images", "99"], "--images 99: expected 100 or more"),
    (["--metrics", "fid", "--metrics-weights", "no.pth"], "--metrics fid: no file no.pth")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_what_cannot_be_evaluated(tiny, capsys, args, message):
    folder = Trainer(tiny(steps=1)).fit()
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder), *args]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fastgan: error: ") and captured.err.count("\n") == 1 and message in captured.err
    assert not (folder / "metrics.json").exists()


def test_evaluate_against_other_data(tiny, quick, capsys, tmp_path):
    folder = Trainer(tiny(source=few_images(tmp_path / "images", 2, 130), channels=1, steps=1)).fit()
    few_images(tmp_path / "images", 2, 140)
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder), "--metrics", "score", "--images", "100"]) == 0
    assert f"images has changed since {folder} was trained on it; the metrics compare" in capsys.readouterr().err
    assert cli.main(["evaluate", str(Trainer(tiny(steps=1)).fit()), "--images", "100"]) == 0
    assert "has changed" not in capsys.readouterr().err


def test_points_are_not_evaluated(tiny, capsys):
    folder = Trainer(tiny("d2l-gan-gaussian", source="gaussian", steps=1)).fit()
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder)]) == 2
    assert capsys.readouterr().err == (f"fastgan: error: {folder} outputs points, which have no metrics; "
                                       "expected a run that outputs images\n")


def test_evaluate_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate"]) == 2 and "no run in runs" in capsys.readouterr().err
    assert cli.main(["evaluate", "nowhere"]) == 2
    assert capsys.readouterr().err == ("fastgan: error: nowhere is not a run folder: cannot read training_options.json "
                                       "(No such file or directory)\n")


def test_evaluate_against_images_of_another_size(tiny, capsys):
    folder = Trainer(tiny(steps=1)).fit()
    options = folder / "training_options.json"
    options.write_text(options.read_text().replace('"image_size": "16"', '"image_size": "32"'))
    capsys.readouterr()
    assert cli.main(["evaluate", str(folder)]) == 2
    assert "generates images of 1x16x16, but digits has images of 1x32x32; expected" in capsys.readouterr().err
