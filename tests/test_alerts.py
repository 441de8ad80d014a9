"""Alerts, on synthetic series of records with numbers of real runs, good and bad."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from fastgan.trainer.alerts import Alerts

Record = dict[str, float]


def series(count: int, every: int = 10, start: int = 0, **values: tuple[float, float]) -> list[Record]:
    """`count` records whose values change linearly."""
    whole = {"d_real": (0.85, 0.85), "d_fake": (0.15, 0.15), "diversity": (0.9, 0.9), "loss_g": (2.0, 2.0), **values}
    return [{"step": start + every * (i + 1),
             **{name: first + (last - first) * i / max(count - 1, 1) for name, (first, last) in whole.items()}}
            for i in range(count)]


WON = {"d_real": (0.999, 1.0), "d_fake": (0.002, 0.0)}
GROWING = {"loss_g": (6.0, 12.0)}


def raised(records: Iterable[Record], loss: str = "bce") -> dict[str, float]:
    """The alerts of a series, each with its step."""
    alerts = Alerts(loss)
    return {name: record["step"] for record in records for name in alerts.look(record)}


def test_a_healthy_run_raises_none():
    """That of the demo: D is far ahead while all fakes are gray, in the first 150 steps."""
    start = series(15, d_real=(0.95, 0.998), d_fake=(0.2, 0.005), diversity=(0.43, 0.11), loss_g=(2.4, 5.7))
    ascent = series(20, start=150, diversity=(0.11, 0.8))
    assert raised([*start, *ascent, *series(500, start=350)]) == {}


def test_the_discriminator_has_won():
    records = [*series(20), *series(60, start=200, **WON, **GROWING)]
    assert raised(records) == {"discriminator won": 480}  # nine tenths of 300 steps


@pytest.mark.parametrize("less", [
    {"d_real": (0.97, 0.97)}, {"d_fake": (0.04, 0.04)}, {"loss_g": (12.0, 6.0)}],
    ids=["D(x) is lower", "D(G(z)) is higher", "the loss falls"])
def test_a_discriminator_that_is_only_ahead(less):
    assert raised(series(80, **{**WON, **GROWING, **less})) == {}


def test_a_discriminator_that_often_errs_has_not_won():
    records = series(80, **WON, **GROWING)
    for record in records[::7]:
        record["d_fake"] = 0.3
    assert raised(records) == {}


def test_the_values_of_a_critic_are_no_probabilities():
    records = series(80, **WON, **GROWING)
    assert raised(records, "wgan-gp") == raised(records, "least-squares") == {}
    assert "discriminator won" in raised(records, "softmax")


def test_hinge_is_won_where_the_loss_of_d_ends():
    """As in a run of digits at 16x16 with --ngf 4 --ndf 16 --nz 8 --batch 8 --lr-d 0.005 --lr-g 1e-7."""
    won = {"d_real": (0.94, 0.985), "d_fake": (0.068, 0.064), "loss_d": (0.0, 0.0), "loss_g": (2.79, 2.83)}
    assert raised(series(60, **won), "hinge") == {"discriminator won": 310}
    assert raised(series(60, **{**won, "loss_d": (1.09, 0.16)}), "hinge") == {}, "a game that goes on"
    assert raised(series(60, **WON, **GROWING), "hinge") == {}, "of steps without D's loss nothing is known"


def test_diversity_falls_below_half_of_its_past():
    records = [*series(30), *series(30, start=300, diversity=(0.9, 0.9)), *series(30, start=600, diversity=(0.3, 0.3))]
    assert raised(records) == {"mode collapse": 660}


def test_diversity_that_never_comes():
    assert raised(series(80, diversity=(0.1, 0.1))) == {"mode collapse": 510}


def test_one_bad_batch_is_no_collapse():
    records = series(80)
    for record in records[40:44]:
        record["diversity"] = 0.05
    assert raised(records) == {}


@pytest.mark.parametrize("every", [1, 10, 100])
def test_few_records_are_no_evidence(every):
    """At least ten records over at least 300 steps are needed."""
    (step,) = raised(series(1000, every, **WON, **GROWING)).values()
    assert step == {1: 301, 10: 310, 100: 1000}[every]


def test_each_alert_comes_once_and_not_again_after_a_resume():
    records = series(200, **WON, **GROWING)
    first = Alerts("bce")
    assert sum(len(first.look(record)) for record in records) == 1
    resumed = Alerts("bce", records[:100])
    assert [resumed.look(record) for record in records[100:]] == [{}] * 100


def test_records_without_losses_are_passed_over():
    """Measurements of a snapshot, and steps in which G was not updated."""
    records = series(80, **WON, **GROWING)
    for record in records[::2]:
        del record["loss_g"]
    measured: list[Record] = [{"step": 100, "fid": 12.0}]
    assert raised([*records[:10], *measured, *records[10:]]) == {"discriminator won": 310}


def test_checkpoints_are_named_where_there_are_some():
    records = series(80, **WON, **GROWING)
    for saved in (True, False):
        alerts = Alerts("bce")
        (words,) = [line for record in records for line in alerts.look(record, saved).values()]
        assert ("earlier checkpoints" in words) == saved


def test_words_say_what_was_seen_and_what_to_try():
    alerts, words = Alerts("bce"), dict[str, str]()
    for record in series(60, **WON, **GROWING, diversity=(0.1, 0.1)):
        words |= alerts.look(record)
    assert words["discriminator won"].startswith("the discriminator has won: for 300 steps ")
    assert "from 6.7 to 8.3" in words["discriminator won"] and "--lr-d" in words["discriminator won"]
    assert "the diversity of the fakes in a batch is 10% of that of its real images" in words["mode collapse"]
    assert "--lr-g" in words["mode collapse"]


def test_of_a_conditional_run_the_class_is_named():
    alerts = Alerts("bce", conditional=True)
    (words,) = [line for record in series(60, diversity=(0.1, 0.1)) for line in alerts.look(record).values()]
    assert "the diversity of the fakes in a class is 10% of that of its real images" in words


@pytest.mark.parametrize(("scores", "step"), [([0.3, 0.44], 1000), ([0.3, 0.6, 0.4, 0.45], 2000), ([0.4], None),
                                              ([0.4, 0.5, 0.4, 0.5], None)], ids=str)
def test_classes_that_score_low_twice_in_a_row(scores, step):
    """0.21 to 0.44 were measured in conditional runs whose label embeddings started from N(0, 1)."""
    measured = [{"step": 500 * (i + 1), "score_diversity": score} for i, score in enumerate(scores)]
    assert raised(measured) == ({} if step is None else {"collapsed classes": step})
