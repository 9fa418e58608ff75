"""In training each batch has fixed numbers of images for the parts of a mixture, whichever images these are."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from trainers import quiet_trainer

from robustsigma import FGSM, PGD, Classifier, GaussianNoise, Mixture, SigmaSample
from robustsigma.data import ArrayDataset, Datasets
from robustsigma.engine.perturbations.base import drawn_rows
from robustsigma.lightning import RobustCallback, RobustDataModule
from robustsigma.lightning.training_perturbation import batch_parts

INNER = Mixture({GaussianNoise(0.1): 0.3, PGD(0.1): 0.55})
MIXTURE = Mixture({FGSM(0.1): 0.1, INNER: 0.4, SigmaSample(fraction=0.35): 0.5})
SHARES = {"0.0": 0.1, "0.1.0": 0.12, "0.1.1": 0.22, "0.2": 0.175}


def seeds(count, batch):
    return torch.arange(count) + 1000 * batch


def counts(step, batch=0, size=13):
    return {part.name: len(part.rows) for part in batch_parts(MIXTURE, seeds(size, batch), seeds(size, batch), step)}


@pytest.mark.parametrize("offset", [0.0, 0.37, 0.999])
@pytest.mark.parametrize("shares", [[0.1] * 10, [0.25, 0.75], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.2, 0.45]])
def test_rows_are_disjoint_and_counts_are_shares_rounded_up_or_down(shares, offset):
    for size in (1, 7, 64):
        draw = torch.rand(size, generator=torch.Generator().manual_seed(size))
        found, start = [], 0.0
        for share in shares:
            found.append(drawn_rows(draw, start, start + share, offset))
            assert abs(len(found[-1]) - share * size) < 1 + 1e-6
            start += share
        joined = torch.cat(found)
        assert len(joined.unique()) == len(joined)
        assert abs(len(joined) - start * size) < 1 + 1e-6


def test_all_processes_have_equal_work_in_a_step():
    assert len({tuple(counts(5, batch).values()) for batch in range(8)}) == 1
    drawn = {tuple(counts(None, batch).values()) for batch in range(8)}
    assert len(drawn) > 4


def test_shares_hold_over_the_batches():
    steps = 100
    found = [counts(step) for step in range(steps)]
    for name, share in SHARES.items():
        mean = sum(each[name] for each in found) / (13 * steps)
        assert mean == pytest.approx(share, abs=0.006), name


def test_each_image_is_as_likely_as_any_other():
    often = torch.zeros(13)
    for batch in range(200):
        for part in batch_parts(MIXTURE, seeds(13, batch), seeds(13, batch), batch):
            often[part.rows] += part.name == "0.0"
    assert often.sum() == pytest.approx(0.1 * 13 * 200, abs=2)
    assert (often / 200 - 0.1).abs().max() < 5 * (0.1 * 0.9 / 200) ** 0.5


class Counts(pl.LightningModule):
    """Counts the images of each batch that are noisy."""

    def __init__(self):
        super().__init__()
        self.classifier = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)))
        self.noisy, self.steps = [], []

    def forward(self, images):
        return self.classifier.net(images)

    def training_step(self, batch, batch_idx):
        images = batch.images if hasattr(batch, "images") else batch[0]
        self.noisy.append(int((images.flatten(1).std(1) > 1e-3).sum()))
        self.steps.append(self.trainer.global_step)
        return self(images).square().mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx == 12:
            self.trainer.save_checkpoint(f"{self.trainer.default_root_dir}/middle.ckpt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.third_party_rng
@pytest.mark.filterwarnings("ignore:You.re resuming from a", "ignore:You passed in a `val_dataloader`")
@pytest.mark.parametrize("as_callback", [True, False])
def test_shares_hold_over_the_batches_of_an_optimizer_step_and_after_a_resume(as_callback, tmp_path):
    gray, noise = ArrayDataset(torch.full((64, 1, 2, 2), 128, dtype=torch.uint8), torch.zeros(64).long()), GaussianNoise

    def counts(accumulate, checkpoint=None):
        train, module = Mixture({noise(0.1): 0.25}), Counts()
        callbacks = [RobustCallback(train=train)] if as_callback else []
        data = DataLoader(gray, 2)
        if not as_callback:
            data = RobustDataModule(Datasets(train=gray, classes=["a", "b"]), train_perturbation=train, batch_size=2)
        options = {"accumulate_grad_batches": accumulate, "default_root_dir": tmp_path}
        quiet_trainer(*callbacks, **options).fit(module, data, ckpt_path=checkpoint)
        return module

    plain, whole = counts(1), counts(8)
    assert all(3 <= sum(whole.noisy[start : start + 8]) <= 5 for start in range(0, 32, 8))
    assert counts(8, tmp_path / "middle.ckpt").noisy == whole.noisy[13:]
    assert plain.steps == [*range(32)]
    parts = [next(batch_parts(Mixture({noise(0.1): 0.25}), seeds(2, 0), seeds(2, 0), step)) for step in plain.steps]
    assert plain.noisy == whole.noisy == [len(part.rows) for part in parts]
