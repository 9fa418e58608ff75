import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from trainers import quiet_trainer

from robustsigma import FGSM, Classifier, GaussianNoise, Mixture, PathEnd, Sigma, SigmaSample
from robustsigma.data import Baggage
from robustsigma.engine.perturbations.path_samples import SampleCache
from robustsigma.lightning import AugmentationStatistics, Batch, LitClassifier, RobustDataModule
from robustsigma.lightning.sample_caches import SampleCaches
from robustsigma.lightning.stored_samples import StoredSamples
from robustsigma.lightning.strategies import check_strategy, kept_samples
from robustsigma.lightning.training_perturbation import batch_parts, without_cache
from robustsigma.models import SmallCNN

SOURCE = Baggage(size=16, train=40, val=4, test=4)
WALK = Sigma(alpha=0.03, beta=0.1, objective="logit", paths=1, max_steps=15)
CACHED = SigmaSample(WALK, cache=SampleCache(max_age=2))


def images(count, seed=0):
    return torch.rand(count, 1, 3, 4, generator=torch.Generator().manual_seed(seed))


def classifier(gain=10.0):
    net = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 12, 3))
    with torch.no_grad():
        net[1].weight.copy_(gain * torch.randn(3, 12, generator=torch.Generator().manual_seed(1)))
        net[1].bias.zero_()
    return Classifier(net)


def problem(count):
    """Return a classifier, images and the labels that it gives them."""
    clf, x = classifier(), images(count)
    with clf.frozen():
        return clf, x, clf.logits(x).argmax(1)


YES = torch.ones(60, dtype=torch.bool)


# The store


@pytest.mark.parametrize(("dtype", "error"), [("uint8", 0.5 / 255), ("float16", 2.0**-12)])
def test_it_gives_back_what_it_was_given(dtype, error):
    cache = StoredSamples(SampleCache(dtype=dtype))
    cache.store(torch.tensor([7, 2, 30]), images(3), YES[:3], 4)
    has, ages, _, found = cache.recall(torch.tensor([2, 3, 30, 99, 7]), 6)
    assert has.tolist() == [True, False, True, False, True]
    assert ages.tolist() == [2, 2, 2]
    assert found.dtype == torch.float32
    assert torch.allclose(found, images(3)[[1, 2, 0]], rtol=0, atol=error * 1.001)
    assert len(cache) == 3


def test_a_new_sample_takes_the_place_of_the_old():
    cache = StoredSamples(SampleCache(dtype="float16"))
    cache.store(torch.tensor([1, 2]), images(2), YES[:2], 0)
    cache.store(torch.tensor([5, 2]), images(2, 5), YES[:2], 3)
    has, ages, _, found = cache.recall(torch.tensor([1, 2, 5]), 3)
    assert has.all()
    assert ages.tolist() == [3, 0, 0]
    expected = torch.stack([images(2)[0], images(2, 5)[1], images(2, 5)[0]])
    assert torch.equal(found, expected.half().float())
    assert len(cache) == 3


def test_the_oldest_make_room():
    cache = StoredSamples(SampleCache(most=3))
    for epoch, index in enumerate([10, 11, 12]):
        cache.store(torch.tensor([index]), images(1), YES[:1], epoch)
    cache.store(torch.tensor([10]), images(1), YES[:1], 3)  # young again
    cache.store(torch.tensor([20, 21]), images(2), YES[:2], 4)
    has, _, _, _ = cache.recall(torch.tensor([10, 11, 12, 20, 21]), 4)
    assert has.tolist() == [True, False, False, True, True]
    assert len(cache) == 3
    cache.store(torch.arange(30, 40), images(10), YES[:10], 5)  # more than it may hold: the first ones
    assert cache.recall(torch.arange(50), 5)[0].nonzero()[:, 0].tolist() == [30, 31, 32]


@pytest.mark.parametrize("most", [6, 9, 11])
def test_against_a_dictionary(most):
    """A random sequence of calls: a cache is a dictionary from index to (epoch, image), bounded by age."""
    source = torch.Generator().manual_seed(0)
    cache, kept = StoredSamples(SampleCache(most=most)), {}
    for epoch in range(5, 45):
        count = int(torch.randint(1, 6, (), generator=source))
        indices = torch.randperm(25, generator=source)[:count]
        pixels = torch.randint(0, 256, (count, 1, 2, 2), generator=source) / 255
        cache.store(indices, pixels, YES[:count], epoch)
        kept |= {int(i): (epoch, p) for i, p in zip(indices, pixels, strict=True)}
        every = torch.arange(30)
        has, ages, _, found = cache.recall(every, epoch)
        assert len(cache) == int(has.sum()) == min(most, len(kept))
        for index, age, image in zip(every[has].tolist(), ages.tolist(), found, strict=True):
            assert kept[index][0] == epoch - age
            assert torch.allclose(kept[index][1], image, rtol=0, atol=1e-6)
        gone = [index for index in kept if not has[index]]
        oldest = min(epoch - age for age in ages.tolist())
        assert all(kept[index][0] <= oldest for index in gone)
        kept = {index: value for index, value in kept.items() if has[index]}


def test_memory_is_as_stated():
    cache = StoredSamples(SampleCache(most=100))
    for start in range(0, 1000, 50):
        cache.store(
            torch.arange(start, start + 50), torch.rand(50, 3, 8, 8, generator=torch.Generator()), YES[:50], start
        )
    assert cache.images.nbytes == 100 * 3 * 8 * 8
    assert cache.owners.nbytes + cache.epochs.nbytes + cache.fooled.nbytes == 100 * 17
    assert cache.slots.nbytes == 8 * 1000


def test_state_comes_back():
    cache, fresh = StoredSamples(SampleCache()), StoredSamples(SampleCache())
    cache.store(torch.tensor([7, 2, 30]), images(3), YES[:3], 4)
    cache.store(torch.tensor([8]), images(1), YES[:1], 5)
    fresh.load_state_dict(cache.state_dict())
    for mine, theirs in zip(cache.recall(torch.arange(40), 6), fresh.recall(torch.arange(40), 6), strict=True):
        assert torch.equal(mine, theirs)
    empty = StoredSamples(SampleCache())
    empty.load_state_dict(StoredSamples(SampleCache()).state_dict())
    assert len(empty) == 0


@pytest.mark.parametrize(
    ("rule", "kept"), [(SampleCache(dtype="float16"), 0), (SampleCache(most=2), 2), (SampleCache(most=3), 3)]
)
def test_of_a_state_of_another_rule_what_fits_is_kept(rule, kept):
    cache, other = StoredSamples(SampleCache()), StoredSamples(rule)
    cache.store(torch.tensor([7, 2, 30]), images(3), YES[:3], 4)
    other.load_state_dict(cache.state_dict())
    assert len(other) == kept
    other.store(torch.tensor([1, 2]), images(2), YES[:2], 5)
    torch.testing.assert_close(other.recall(torch.tensor([1, 2]), 5)[3], images(2), atol=3e-3, rtol=0)


# A batch


def _apply(caches, perturbation, clf, x, y, epoch, indices=None):
    at = torch.arange(len(x)) if indices is None else indices
    seeds = at * 1000 + epoch
    batch = Batch(x, y, at)
    made, cache_stats = caches.apply(perturbation, clf, batch, seeds=seeds, epoch=epoch)
    anew, _ = SampleCaches(caches.seed).apply(perturbation, clf, batch, seeds=seeds, epoch=epoch)
    return made, cache_stats, anew


def test_without_a_cache_nothing_is_different():
    clf, x, y = classifier(), images(6), torch.arange(6) % 3
    for perturbation in (SigmaSample(WALK), FGSM(0.1), Mixture({SigmaSample(WALK): 0.5}), PathEnd(WALK)):
        for epoch in (0, 1):
            made, cache_stats, _ = _apply(SampleCaches(), perturbation, clf, x, y, epoch)
            plain = perturbation(clf, x, y, seed=torch.arange(6) * 1000 + epoch, return_info=True)
            assert torch.equal(made.images, plain.images)
            assert cache_stats.totals.tolist() == [0] * 5


def _sound(clf, made, y):
    with clf.frozen():
        return clf.logits(made.images).argmax(1) != y


def test_samples_are_used_again_until_they_are_too_old():
    clf, x, y = problem(6)
    caches = SampleCaches()
    first, cache_stats, plain = _apply(caches, CACHED, clf, x, y, 0)
    assert torch.equal(first.images, plain.images)
    assert cache_stats.totals.tolist() == [6, 0, 0, 0, 0]
    fooled = _sound(clf, first, y)
    assert fooled.sum() >= 4
    for epoch in (1, 2):
        made, cache_stats, plain = _apply(caches, CACHED, clf, x, y, epoch)
        served = cache_stats.hits
        assert served.all()  # also the one that did not fool the network: another walk would not get further
        assert (made.images - first.images).abs().max() <= 0.501 / 255
        assert not made.attempted.any()
        assert made.steps.sum() == 0
        assert cache_stats.ages.tolist() == [epoch] * 6
    made, cache_stats, plain = _apply(caches, CACHED, clf, x, y, 3)
    assert cache_stats.totals.tolist() == [6, 0, 6, 0, 0]
    assert torch.equal(made.images, plain.images)
    assert made.attempted.all()


def test_a_sample_that_the_network_has_learned_is_recomputed():
    clf, x, y = problem(6)
    caches = SampleCaches()
    first, _, _ = _apply(caches, CACHED, clf, x, y, 0)
    fooled = _sound(clf, first, y)

    class Learned(nn.Module):
        """Knows the first three samples by now, and mistakes the other three."""

        def forward(self, z):
            nearest = (z[:, None] - first.images).flatten(2).abs().amax(2).argmin(1)
            label = torch.where(nearest < 3, y[nearest], (y[nearest] + 1) % 3)
            return 5 * nn.functional.one_hot(label, 3).float()

    learned = Classifier(Learned())
    made, cache_stats, _ = _apply(caches, CACHED, learned, x, y, 2)
    stale = torch.arange(6) < 3
    assert fooled[:3].all()
    assert torch.equal(cache_stats.hits, ~stale)
    assert torch.equal(cache_stats.stale, stale)
    assert cache_stats.ages.tolist() == [0] * 3 + [2] * 3
    assert torch.equal(made.attempted, stale)


def test_the_account_adds_up_and_an_image_is_found_in_any_batch():
    clf, x, y = problem(12)
    caches = SampleCaches()
    order = [list(range(12)), [3, 1, 4, 0, 5, 9, 2, 6], [11, 10, 8, 7]]
    for epoch, rows in enumerate(order):
        _, w, _ = _apply(caches, CACHED, clf, x[rows], y[rows], epoch, torch.tensor(rows))
        known = w.hits.int() + w.expired.int() + w.stale.int()
        assert w.requested.all()
        assert (known == (epoch > 0)).all()


def test_padding_requests_no_sample_and_is_not_kept():
    clf, x, y = problem(6)
    caches, at = SampleCaches(), torch.arange(6)
    for epoch in (0, 1):
        _, cache_stats = caches.apply(CACHED, clf, Batch(x, y, at, padding=1), seeds=at, epoch=epoch)
        assert cache_stats.requested.tolist() == [True] * 5 + [False]
        assert cache_stats.hits.tolist() == [epoch == 1] * 5 + [False]
        assert caches.caches["0"].recall(at, epoch)[0].tolist() == [True] * 5 + [False]


def test_in_a_mixture_only_sigma_s_part_is_served_and_the_others_are_as_without():
    clf, x, y = problem(40)
    part = Mixture({CACHED: 0.5, GaussianNoise(0.1): 0.2})
    mixture = Mixture({FGSM(0.05): 0.2, part: 0.6})
    caches = SampleCaches()
    served = 0
    for epoch in range(3):
        made, cache_stats, plain = _apply(caches, mixture, clf, x, y, epoch)
        walked = plain.attempted
        assert not (cache_stats.hits & ~walked).any()
        assert torch.equal(cache_stats.requested, walked)
        rest = ~cache_stats.hits
        assert torch.allclose(made.images[rest], plain.images[rest], rtol=0, atol=1e-5)
        served += int(cache_stats.hits.sum())
    assert served > 10
    assert list(caches.caches) == ["0.1.0"]


def test_the_parts_together_are_the_perturbation():
    clf, x, y = problem(40)
    part = Mixture({SigmaSample(WALK, fraction=0.5, cache=SampleCache()): 0.5, GaussianNoise(0.1): 0.2})
    mixture = Mixture({FGSM(0.05): 0.2, part: 0.7})
    seeds = torch.arange(40)
    whole, images_ = without_cache(mixture)(clf, x, y, seed=seeds, return_info=True), x.clone()
    found = list(batch_parts(mixture, seeds, seeds))
    assert [part.name for part in found] == ["0.0", "0.1.0", "0.1.1"]
    for part in found:
        made = part.perturbation(clf, x[part.rows], y[part.rows], seed=part.seeds, return_info=True)
        images_[part.rows] = made.images
    assert torch.allclose(images_, whole.images, rtol=0, atol=1e-5)


def test_beside_a_cache_an_image_keeps_its_part_for_a_while_and_shares_stay():
    count, epochs = 2000, 24
    clf, x = classifier(), torch.full((count, 1, 3, 4), 0.5)
    clf.net[1].weight.data.zero_()  # no walk moves: what matters is who would have walked
    mixture = Mixture({SigmaSample(Sigma(paths=1, max_steps=1), cache=SampleCache(max_age=2)): 0.25})
    searched = torch.stack([_apply_once(mixture, clf, x, epoch) for epoch in range(epochs)])
    assert (searched.float().mean(1) - 0.25).abs().max() < 0.05
    assert (searched.float().mean(0).mean() - 0.25).abs() < 0.02
    again = (searched[1:] & searched[:-1]).sum() / searched[:-1].sum()
    assert abs(float(again) - (2 / 3 + 0.25 / 3)) < 0.02  # drawn anew in one epoch of three
    changes = (searched[1:] != searched[:-1]).sum(1).float()
    assert changes.max() < 2 * changes.mean()  # not all in the same epoch


def _apply_once(mixture, clf, x, epoch):
    at = torch.arange(len(x))
    return SampleCaches().apply(mixture, clf, Batch(x, at % 3, at), seeds=at * 1000 + epoch, epoch=epoch)[0].attempted


def test_two_caches_do_not_share():
    clf, x, y = classifier(), images(30), torch.arange(30) % 3
    caches = SampleCaches()
    mixture = Mixture({CACHED: 0.4, SigmaSample(WALK, fraction=0.9, cache=SampleCache(most=2)): 0.6})
    _apply(caches, mixture, clf, x, y, 0)
    assert set(caches.caches) == {"0.0", "0.1"}
    assert len(caches.caches["0.1"]) == 2
    owners = [set(cache.owners[: len(cache)].tolist()) for cache in caches.caches.values()]
    assert owners[0].isdisjoint(owners[1])


def test_an_unsuccessful_walk_that_gives_the_image_back_is_not_kept():
    clf, x, y = classifier(gain=0.0), images(5), torch.arange(5) % 3
    stuck = SigmaSample(WALK, unconverged="original", cache=SampleCache())
    caches = SampleCaches()
    made, _, _ = _apply(caches, stuck, clf, x, y, 0)
    assert torch.equal(made.images, x)
    assert made.attempted.all()
    assert len(caches.caches["0"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_age": -1}, "max_age: expected"), ({"dtype": "int8"}, "dtype: expected"), ({"most": 0}, "most: expected")],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SampleCache(**options)
    with pytest.raises(ValueError, match="cache: expected a SampleCache or None"):
        SigmaSample(cache=3)


# A training


def _train(tmp_path, epochs, perturbation, *, checkpoint=None, batch_size=16):
    torch.default_generator.manual_seed(0)
    net = SmallCNN(3, 5, width=4, dropout=0.0)
    model = LitClassifier(net, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), schedule="constant")
    statistics = AugmentationStatistics()
    data = RobustDataModule(SOURCE, train_perturbation=perturbation, batch_size=batch_size)
    trainer = quiet_trainer(statistics, epochs=epochs, limit_val_batches=0, default_root_dir=tmp_path)
    trainer.fit(model, data, ckpt_path=checkpoint)
    return model, data, trainer, statistics.totals


@pytest.mark.third_party_rng  # weights
def test_a_training_uses_cached_samples_and_logs_it(tmp_path):
    _, data, trainer, totals = _train(tmp_path, 4, CACHED)
    _, _, _, again = _train(tmp_path, 4, CACHED)
    assert totals.requested == 4 * 40
    assert totals.hits > 10
    assert totals.attempted + totals.hits == totals.requested
    assert totals.ages >= totals.hits
    assert totals.expired + totals.stale + totals.hits <= 3 * 40
    for name in ("hits", "expired", "stale", "ages", "steps"):
        assert getattr(again, name) == getattr(totals, name)
    metrics = trainer.callback_metrics
    assert {"cache_hit_rate", "cache_expired", "cache_stale"} <= set(metrics)
    assert 0 <= metrics["cache_hit_rate"] <= 1
    assert 1 <= metrics.get("cache_mean_age", 1) <= 2
    assert len(data.sample_caches.caches["0"]) <= 40


@pytest.mark.third_party_rng  # weights
def test_a_resumed_training_gives_the_same_bits(tmp_path):
    mixture = Mixture({CACHED: 0.7, FGSM(0.03): 0.3})
    whole, data, _, _ = _train(tmp_path, 4, mixture)
    _, _, trainer, _ = _train(tmp_path, 2, mixture)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, other, _, second = _train(tmp_path, 4, mixture, checkpoint=tmp_path / "half.ckpt")
    assert second.hits > 0
    for mine, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    kept, found = (d.sample_caches.caches["0.0"].state_dict() for d in (data, other))
    assert all(torch.equal(kept[name], found[name]) for name in kept)


@pytest.mark.third_party_rng  # weights
def test_another_training_with_the_same_data_module_starts_with_an_empty_cache(tmp_path):
    data = RobustDataModule(SOURCE, train_perturbation=CACHED, batch_size=16)
    ends = []
    for _ in range(2):
        torch.default_generator.manual_seed(0)
        model = LitClassifier(SmallCNN(3, 5, width=4, dropout=0.0))
        trainer = quiet_trainer(epochs=2, limit_val_batches=0, default_root_dir=tmp_path)
        trainer.fit(model, data)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


# Where there is no cache


@pytest.mark.parametrize("perturbation", [CACHED, Mixture({CACHED: 1.0})])
def test_a_call_of_ones_own_is_refused_as_nobody_keeps_samples(perturbation):
    clf, x, y = problem(4)
    with pytest.raises(ValueError, match=r"^cache: expected None, since samples are stored by the index of their"):
        perturbation(clf, x, y, seed=torch.arange(4))
    assert without_cache(perturbation)(clf, x, y, seed=torch.arange(4)).shape == x.shape


@pytest.mark.third_party_rng
def test_as_a_condition_each_sample_is_recomputed():
    found = {}
    for name, sample in (("cached", CACHED), ("plain", without_cache(CACHED))):
        torch.default_generator.manual_seed(0)
        trainer = quiet_trainer()
        data = RobustDataModule(SOURCE, conditions={"sigma": Mixture({sample: 1.0})})
        trainer.test(LitClassifier(SmallCNN(3, 5, width=4)), data, verbose=False)
        found[name] = trainer.callback_metrics["test_sigma_acc"]
    assert found["cached"] == found["plain"]


# Several processes


def _filled(caches, indices, epoch=1):
    clf, x, y = problem(30)
    caches.apply(CACHED, clf, Batch(x[indices], y[indices], indices), seeds=indices, epoch=epoch)
    return caches


def _owners(caches):
    return sorted(caches.caches["0"].state_dict()["owners"].tolist())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_samples_are_dealt_anew_to_another_number_of_processes(world, tmp_path):
    for rank in (0, 1):
        caches = SampleCaches()
        caches.owned = lambda indices, rank=rank: indices % 2 == rank
        _filled(caches, torch.arange(24)).save(tmp_path / f"{rank}.pt")
        assert _owners(caches) == [*range(rank, 24, 2)]
    found = []
    for rank in range(world):
        caches = SampleCaches()
        caches.owned = lambda indices, rank=rank: indices % world == rank
        caches.load(sorted(tmp_path.glob("*.pt")), CACHED)
        clf, x, y = problem(30)
        at = torch.arange(30)
        _, stats = caches.apply(CACHED, clf, Batch(x, y, at), seeds=at, epoch=2)
        assert stats.hits.tolist() == [index % world == rank and index < 24 for index in range(30)]
        found += _owners(caches)
    assert sorted(found) == [*range(30)]


def test_samples_that_were_not_needed_since_a_resume_are_kept(tmp_path):
    first = tmp_path / "a" / "7-0-of-1.pt"
    _filled(SampleCaches(), torch.arange(24)).save(first)
    resumed = SampleCaches()
    resumed.load([first], CACHED)
    for path in (first, tmp_path / "b" / "7-0-of-1.pt", tmp_path / "b" / "9-0-of-2.pt"):
        resumed.save(path)
        assert len(torch.load(path)["0"]["owners"]) == 24


def test_files_of_samples_that_are_missing_are_reported(tmp_path):
    for rank in (0, 1):
        SampleCaches().save(tmp_path / "last.ckpt.samples" / f"7-{rank}-of-2.pt")
    path = tmp_path / "last.ckpt"
    assert [each.name for each in kept_samples(path, 7, 0, 4, shared=True)] == ["7-0-of-2.pt", "7-1-of-2.pt"]
    assert [each.name for each in kept_samples(path, 7, 1, 2, shared=False)] == ["7-1-of-2.pt"]
    assert kept_samples(path, 7, 1, 4, shared=False) == []
    (tmp_path / "last.ckpt.samples" / "7-0-of-2.pt").unlink()
    with pytest.warns(UserWarning, match="sample caches are incomplete: 1 files of step 7"):
        kept_samples(path, 7, 0, 2, shared=True)
    with pytest.warns(UserWarning, match="incomplete: 0 files of step 8 are in .*; what is missing is recomputed"):
        kept_samples(path, 8, 0, 2, shared=True)


def test_a_full_disk_is_named(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate" if hasattr(os, "posix_fallocate") else "truncate", full)
    with pytest.raises(OSError, match=r"a sample cache of 3.6e-08 GB in .*: No space left on device; set TMPDIR"):
        StoredSamples(SampleCache()).store(torch.arange(3), images(3), YES[:3], 0)


@pytest.mark.parametrize(("name", "stage"), [("FSDPStrategy", 0), ("DeepSpeedStrategy", 3)])
def test_strategies_whose_parameters_cannot_be_gathered_are_refused(name, stage):
    strategy = type(name, (), {"zero_stage_3": stage == 3})()
    with pytest.raises(ValueError, match=rf"^strategy: expected ddp, or ModelParallelStrategy .*got {name}"):
        check_strategy(SimpleNamespace(strategy=strategy))
    check_strategy(SimpleNamespace(strategy=type("DeepSpeedStrategy", (), {"zero_stage_3": False})()))
