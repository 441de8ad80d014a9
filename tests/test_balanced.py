"""`--balanced`: each class is equally frequent in expectation, determined only by seed and position."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from fastgan import cli, presets
from fastgan.config import DataConfig
from fastgan.data import Dataset, Loader, make_feed, open_dataset
from fastgan.data.order import Order, Position, Shard
from fastgan.errors import FastganError
from fastgan.metrics.real_images import RealImages
from fastgan.trainer import Trainer, checkpoint
from tests.test_data import write_images

CPU = torch.device("cpu")
SIZES = [6, 30, 0, 4]  # images of each class


@pytest.fixture(params=["memory", "streamed"])
def skewed(request, tmp_path) -> tuple[Dataset, DataConfig]:
    """Images of two classes, 3 and 12, in memory or streamed."""
    write_images(tmp_path / "rare", 3)
    write_images(tmp_path / "usual", 12, start=3)
    config = DataConfig(source=f"folder:{tmp_path}", image_size="8", batch=4, balanced=True,
                        cache_gb=1.0 if request.param == "memory" else 1e-9)
    return open_dataset(config), config


def drawn(order: Order, epochs: int) -> list[int]:
    return list(itertools.chain(*itertools.islice(order.walk(Position(0, 0)), epochs * order.batches_per_epoch)))


@pytest.mark.parametrize("last_batch", ["drop", "keep", "pad", "rollover"])
def test_classes_and_the_images_of_each_are_drawn_equally_often(last_batch):
    labels = torch.arange(4).repeat_interleave(torch.tensor(SIZES))
    indices = drawn(Order(40, 7, last_batch, 0, labels=labels), epochs=300)
    images, classes = Counter(indices), Counter(labels[indices].tolist())
    assert classes.keys() == {0, 1, 3} and len(images) == 40
    for found, share in [*((classes[c], 1 / 3) for c in classes),
                         *((images[i], 1 / 3 / SIZES[labels[i]]) for i in images)]:
        assert abs(found - len(indices) * share) < 5 * math.sqrt(len(indices) * share * (1 - share))


def test_the_order_follows_from_seed_and_epoch():
    labels = torch.arange(40) % 3
    state = torch.get_rng_state()
    orders = [Order(40, 40, "drop", seed, labels=labels).indices(Position(epoch, 0)).tolist()
              for seed in range(2) for epoch in range(2)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert Order(40, 40, "drop", 1, labels=labels).indices(Position(0, 0)).tolist() == orders[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_processes_take_shards_of_the_same_batches():
    labels = torch.arange(40) % 3
    whole = Order(40, 8, "rollover", 3, labels=labels)
    shards = [Order(40, 8, "rollover", 3, Shard(rank, 2), labels) for rank in range(2)]
    for epoch, cursor in [(0, 0), (0, 8), (1, 3)]:
        position = Position(epoch, cursor)
        assert torch.equal(torch.cat([shard.indices(position) for shard in shards]), whole.indices(position))


def test_loader_and_feed_draw_the_same_and_resume_exactly(skewed):
    dataset, config = skewed
    loader, feed = Loader(dataset, config, 1), make_feed(dataset, config, 1, CPU)
    expected = [loader.next_batch()[1].tolist() for _ in range(9)]
    loader.close()
    assert Counter(itertools.chain(*expected))[0] > 9  # a fifth of 36 without balance
    given = []
    for _ in range(4):
        feed.prepare()
        given.append(feed.fetch()[1].tolist())
        feed.done()
    state = feed.state_dict()
    feed.close()
    resumed = Loader(dataset, config, 1)
    resumed.load_state_dict(state)
    assert given + [resumed.next_batch()[1].tolist() for _ in range(5)] == expected
    resumed.close()


def test_a_run_resumes_exactly_and_not_without_the_option(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).integers(0, 256, (40, 16, 16), np.uint8),
             labels=np.arange(40) // 36)
    config = presets.get("digits", source=f"npz:{tmp_path}/data.npz", image_size="16", batch=8, ngf=4, ndf=4, nz=8,
                         balanced=True, steps=8, snap=4, grid=4, plan="default", tensorboard=False, device="cpu",
                         outdir=str(tmp_path / "runs"))
    whole, half = Trainer(config).fit(), Trainer(config.replace(steps=4)).fit()
    with pytest.raises(FastganError, match="balanced True -> False"):
        Trainer.resume(half, config.replace(balanced=False))
    Trainer.resume(half, config).fit()
    straight, resumed = (checkpoint.read(folder / "checkpoints" / "step000008.pt")["step"]["generator"]
                         for folder in (whole, half))
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_metrics_see_each_real_image_once(skewed):
    dataset, config = skewed
    labels = torch.cat([labels for _, labels in RealImages(dataset, config).batches(15, "")])
    assert labels.bincount().tolist() == [3, 12]


def test_data_without_labels_is_refused(tmp_path, capsys):
    write_images(tmp_path / "images", 3)
    source = f"folder:{tmp_path / 'images'}"
    assert cli.main(["train", "--dry-run", "--data", source, "--batch", "2", "--balanced"]) == 2
    assert "--balanced: images has no labels; expected class subfolders or labeled data" in capsys.readouterr().err
    config = DataConfig(source=source, batch=2, balanced=True)
    with pytest.raises(FastganError, match="--balanced"):
        make_feed(open_dataset(config), config, 0, CPU)
