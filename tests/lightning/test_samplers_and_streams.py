"""RobustDataModule with a sampler of the user's, and with streams."""

from __future__ import annotations

import copy

import pytest
import torch
from pictures import Pictures
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import (
    BatchSampler,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
    get_worker_info,
)
from trainers import quiet_trainer

from robustsigma import FGSM, GaussianNoise, Mixture, Sigma, SigmaSample
from robustsigma.data import Datasets
from robustsigma.engine.perturbations import SampleCache
from robustsigma.lightning import LitClassifier, OverfittingMonitor, RobustDataModule
from robustsigma.lightning.loaders import KeySampler
from robustsigma.models import SmallCNN

pytestmark = [
    pytest.mark.third_party_rng,
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
]
BASE = Pictures(24)
NAMES = ["a", "b", "c"]


class Seen(LitClassifier):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen: list = []

    def training_step(self, batch, batch_idx):
        self.seen.append(copy.deepcopy(batch))
        return super().training_step(batch, batch_idx)

    def images(self, epoch=None, epochs=1):
        size = len(self.seen) // epochs
        seen = self.seen if epoch is None else self.seen[epoch * size : (epoch + 1) * size]
        return torch.cat([batch.images for batch in seen]), torch.cat([batch.indices for batch in seen])


def module(**options):
    torch.default_generator.manual_seed(0)
    return Seen(SmallCNN(3, 3, strides=(1, 1, 1, 1), width=4), schedule="constant", **options)


def data(train=BASE, val=BASE, **options):
    options = {"train_perturbation": Mixture({FGSM(0.1): 0.5, GaussianNoise(0.1): 0.5}), "batch_size": 5, **options}
    return RobustDataModule(Datasets(train, val, val, classes=NAMES), **options)


def fit(datamodule, lit=None, ckpt_path=None, callbacks=(), **options):
    lit = lit or module()
    trainer = quiet_trainer(*callbacks, limit_val_batches=0, **options)
    trainer.fit(lit, datamodule, ckpt_path=ckpt_path)
    return lit, trainer


def walk():
    sigma = Sigma(objective="logit", alpha=0.02, beta=0.1, paths=1, max_steps=3)
    return SigmaSample(sigma, cache=SampleCache(max_age=3))


# Samplers


def weighted(generator=None):
    weights = torch.where(BASE.labels == 0, 8.0, 1.0)
    return WeightedRandomSampler(weights, 40, generator=generator)


@pytest.mark.parametrize("generator", [False, True])
def test_a_weighted_sampler_draws_by_seed_and_epoch(generator):
    def drawn(seed=0, skip=0):
        own = torch.Generator().manual_seed(7 + skip) if generator else None
        lit, _ = fit(data(sampler=weighted(own), seed=seed), epochs=2)
        return [lit.images(epoch, 2)[1].tolist() for epoch in (0, 1)]

    state = torch.get_rng_state()
    first, second = drawn()
    torch.set_rng_state(state)
    torch.rand(3)  # another state of the global generator
    assert drawn(skip=1) == [first, second]
    assert first != second
    assert len(first) == 40
    labels = BASE.labels[torch.tensor(first)]
    assert (labels == 0).double().mean() > 0.6  # a third without weights
    assert drawn(seed=1)[0] != first


def test_an_image_that_is_drawn_again_is_perturbed_anew_but_not_in_a_resume():
    lit, _ = fit(data(sampler=weighted(), train_perturbation=GaussianNoise(0.1)))
    images, indices = lit.images()
    often = int(indices.bincount().argmax())
    same = images[indices == often]
    assert len(same) > 3
    assert len(same.flatten(1).unique(dim=0)) == len(same)
    plain, _ = fit(data(train_perturbation=GaussianNoise(0.1)))
    assert any(torch.equal(image, plain.images()[0][plain.images()[1] == often][0]) for image in same)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_divide_what_one_draws_by_the_owners_of_the_images(world):
    def keys(rank, world_size):
        draws = WeightedRandomSampler([9.0] * 4 + [1.0] * 20, 20)
        sampler = KeySampler(
            range(24), shuffle=True, seed=3, rank=rank, world_size=world_size, sampler=draws
        )  # fmt: skip
        sampler.set_epoch(2)
        assert len(sampler) == -(-20 // world_size)
        found = list(sampler)
        mine = sampler.owned(torch.tensor([key.image for key in found]))
        assert sampler.images(len(found) - 1, 1) == (20 - 1) % world_size + 1  # of all processes at the last place
        return found, int(mine.sum())

    whole, parts = keys(0, 1)[0], [keys(rank, world) for rank in range(world)]
    joined = [key for part, _ in parts for key in part]
    assert sorted(key for key in joined if not key.is_padding) == sorted(whole)
    assert sum(key.is_padding for key in joined) == -20 % world
    assert sum(owned for _, owned in parts) >= 15  # a process gets another's images only where its own are too few


def test_a_sample_cache_keeps_one_sample_of_an_image_that_is_drawn_twice():
    walk = SigmaSample(
        Sigma(objective="logit", alpha=0.02, beta=0.1, paths=1, max_steps=3), cache=SampleCache(max_age=3)
    )
    datamodule = data(sampler=weighted(), train_perturbation=walk, batch_size=20)
    fit(datamodule, epochs=2)
    (cache,) = datamodule.sample_caches.caches.values()
    owners = cache.owners[: cache.count]
    assert len(owners.unique()) == len(owners) > 5


def test_a_resume_in_the_middle_of_an_epoch_draws_the_same(tmp_path):
    whole, _ = fit(data(sampler=weighted()), epochs=2)
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=11, save_top_k=-1)
    fit(data(sampler=weighted()), epochs=2, enable_checkpointing=True, callbacks=[save])
    resumed, _ = fit(data(sampler=weighted()), ckpt_path=tmp_path / "step=11.ckpt", epochs=2)
    assert len(resumed.seen) == 16 - 11
    assert all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": [1, 2]}, "sampler: expected a Sampler or None"),
        ({"sampler": DistributedSampler(BASE, 2, 0)}, "sampler: expected one of all images"),
        ({"sampler": SequentialSampler(BASE), "limits": {"train": 3}}, "limits: expected none for train"),
        (
            {"sampler": SequentialSampler(range(30))},
            r"sampler: expected 30 indices of the 24 .* got 24",
        ),
        (
            {"sampler": BatchSampler(range(24), 4, False)},
            r"sampler: expected 6 indices of .* got \[0, 1",
        ),
    ],
)
def test_other_samplers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fit(data(**options))


def test_any_sampler_of_torch():
    lit, _ = fit(data(sampler=RandomSampler(BASE, num_samples=10)))
    assert len(lit.images()[1].unique()) == 10
    lit, _ = fit(data(sampler=SequentialSampler(BASE)))
    assert lit.images()[1].tolist() == list(range(24))


# Streams


class Stream(IterableDataset):
    """Divides its images among workers, as torch asks."""

    def __init__(self, keyed=True, count=24):
        self.keyed, self.count, self.epochs = keyed, count, []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        worker = get_worker_info()
        start, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for place in range(start, self.count, step):
            yield (*BASE[place], place) if self.keyed else BASE[place]


def test_a_stream_with_keys_trains_as_the_dataset_in_its_order():
    ordered, _ = fit(data(sampler=SequentialSampler(BASE)), epochs=2)
    stream = Stream()
    streamed, trainer = fit(data(stream), epochs=2)
    assert all(map(torch.equal, streamed.state_dict().values(), ordered.state_dict().values()))
    assert stream.epochs == [0, 1]
    assert trainer.global_step == 10


class Shuffled(Stream):
    """Has another order in each epoch."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(sum(self.epochs[-1:]))
        order = torch.randperm(self.count, generator=generator).tolist()
        yield from ((*BASE[order[place]], order[place]) for *_, place in super().__iter__())


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("limit", [None, 3])
def test_a_stream_resumes_in_the_middle_and_at_the_end_of_an_epoch(limit, workers, tmp_path):
    """5 batches an epoch, or 6 of two workers, or the first 3 of them."""

    def train(path=None, callbacks=()):
        options = {"epochs": 2, "limit_train_batches": limit, "enable_checkpointing": bool(callbacks)}
        return fit(data(Shuffled(), num_workers=workers), ckpt_path=path, callbacks=callbacks, **options)[0]

    batches = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = train(callbacks=[batches, ModelCheckpoint(tmp_path, "end-{step}", save_top_k=-1)])
    size = len(whole.seen) // 2
    assert sorted(whole.images(0, 2)[1]) == sorted(whole.images(1, 2)[1]) or limit
    for name, done in (("", 2), ("", size), ("end-", size), ("", size + 1)):
        resumed = train(tmp_path / f"{name}step={done}.ckpt")
        assert [batch.indices.tolist() for batch in resumed.seen] == [b.indices.tolist() for b in whole.seen[done:]]
        assert all(map(torch.equal, resumed.state_dict().values(), whole.state_dict().values()))


@pytest.mark.parametrize("stream", [False, True])
def test_an_epoch_after_a_resume_with_smaller_batches_has_all_images(stream, tmp_path):
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)  # with the last batch
    fit(data(Stream() if stream else BASE), enable_checkpointing=True, callbacks=[save])
    smaller = data(Stream() if stream else BASE, batch_size=4)
    resumed, trainer = fit(smaller, ckpt_path=tmp_path / "step=5.ckpt", epochs=2, accumulate_grad_batches=4)
    assert sorted(resumed.images()[1].tolist()) == list(range(24))
    assert trainer.global_step == 5 + 2  # of 4 batches and of 2


def test_a_stream_without_keys_draws_by_pixels():
    lit, _ = fit(data(Stream(keyed=False)), epochs=2)
    again, _ = fit(data(Stream(keyed=False), batch_size=8), module(), epochs=1)
    assert not torch.equal(*(lit.images(epoch, 2)[0] for epoch in (0, 1)))  # new noise, the same images
    assert torch.equal(*(lit.images(epoch, 2)[1] for epoch in (0, 1)))
    assert torch.equal(lit.images(0, 2)[1], again.images()[1])


def test_a_sample_cache_needs_integer_keys(tmp_path):
    with pytest.raises(ValueError, match=r"train: expected a stream of \(image, label, key\) whose keys are integers"):
        fit(data(Stream(keyed=False), train_perturbation=walk()))
    datamodule = data(Stream(), train_perturbation=walk())
    save = ModelCheckpoint(tmp_path, "last")
    fit(datamodule, epochs=2, enable_checkpointing=True, callbacks=[save])
    (cache,) = datamodule.sample_caches.caches.values()
    assert cache.count > 5
    with pytest.warns(UserWarning, match="sample cache is of other training images"):
        fit(data(train_perturbation=walk()), ckpt_path=tmp_path / "last.ckpt", epochs=3)


def test_streams_are_evaluated():
    lit, datamodule = module(), data(val=Stream(count=9))
    (logged,) = quiet_trainer().validate(lit, datamodule, verbose=False)
    lit.eval()
    x, y = BASE.images[:9], BASE.labels[:9]
    assert logged["val_clean_acc"] == pytest.approx(float((lit(x).argmax(1) == y).float().mean()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": SequentialSampler(BASE)}, "sampler: expected none for train, whose images come in a stream"),
        ({"limits": {"train": 3}}, "limits: expected none for train, whose images come in a stream"),
    ],
)
def test_what_a_stream_cannot_do_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        fit(data(Stream(), **options))
    with pytest.raises(ValueError, match=message):
        data(Stream(), **options).train_dataloader()


def test_a_length_is_asked_for_where_it_is_needed():
    torch.default_generator.manual_seed(0)
    cosine = Seen(SmallCNN(3, 3, strides=(1, 1, 1, 1), width=4))
    with pytest.raises(ValueError, match=r"schedule: expected .*a Trainer with max_steps"):
        fit(data(Stream()), cosine)
    _, trainer = fit(data(Stream()), cosine, epochs=-1, max_steps=7)
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-8
    with pytest.raises(ValueError, match="split: expected one whose images have indices, for the OverfittingMonitor"):
        fit(data(Stream()), callbacks=[OverfittingMonitor(images=4)])
    fit(data(Stream()), callbacks=[OverfittingMonitor(images=4, split="val")])


def test_a_stream_of_ones_own_spec():
    class Own(RobustDataModule):
        def split(self, name):
            return Stream() if name == "train" else super().split(name)

    own = Own(Datasets(BASE, BASE, classes=NAMES), train_perturbation=FGSM(0.1), batch_size=5)
    lit, _ = fit(own)
    assert lit.images()[1].tolist() == list(range(24))
