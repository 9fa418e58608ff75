"""A network, images and labels of a user, and every kind of data that may hold them."""

from __future__ import annotations

from collections import namedtuple

import cases
import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

from robustsigma import Classifier
from robustsigma.data import ArrayDataset, Datasets
from robustsigma.lightning import RobustDataModule

N = 37
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.6, 0.7)
BYTES = (cases.images(N) * 255).round().to(torch.uint8)
IMAGES = BYTES.float() / 255


def labels_of(net, images=IMAGES):
    """Return what a network answers, but for every fifth image."""
    with torch.no_grad():
        labels = Classifier(net, mean=MEAN, std=STD).eval()(images).argmax(1)
    return torch.where(torch.arange(len(images)) % 5 == 0, (labels + 1) % cases.CLASSES, labels)


LABELS = labels_of(cases.mlp())


class Items(Dataset):
    """Items of a kind, counted when they are read."""

    def __init__(self, item, count=N):
        self.item, self.count, self.reads = item, count, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError
        self.reads += 1
        return self.item(index)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(IMAGES, LABELS.tolist(), strict=True))


class SizedStream(Stream):
    def __len__(self):
        return N


class Module(pl.LightningDataModule):
    """A data module with one loader."""

    def __init__(self, stage):
        super().__init__()
        self.stage = stage
        name = "test_dataloader" if stage == "test" else "val_dataloader"
        self.__class__ = type("Mine", (Module,), {name: lambda self: DataLoader(self.data, 8)})

    def setup(self, stage):
        assert stage == self.stage
        self.data = TensorDataset(IMAGES, LABELS)


Sample = namedtuple("Sample", "picture target")


def pil(index):
    return Image.fromarray(BYTES[index].permute(1, 2, 0).numpy()), int(LABELS[index])


def one_hot():
    return torch.nn.functional.one_hot(LABELS, cases.CLASSES).float()


# Each kind of data, with the places of images and labels where a batch is no pair.
DATA = {
    "dataset": lambda: TensorDataset(IMAGES, LABELS),
    "dataset of bytes": lambda: TensorDataset(BYTES, LABELS),
    "dataset of PIL images": lambda: Items(pil),
    "dataset of arrays": lambda: Items(lambda index: (IMAGES[index].numpy(), np.int64(LABELS[index]))),
    "subset": lambda: Subset(TensorDataset(torch.cat([IMAGES, IMAGES]), torch.cat([LABELS, LABELS])), range(N)),
    "list of items": lambda: list(zip(IMAGES, LABELS, strict=True)),
    "stream": Stream,
    "array dataset": lambda: ArrayDataset(BYTES, LABELS),
    "tensors": lambda: (IMAGES, LABELS),
    "bytes": lambda: (BYTES, LABELS),
    "arrays": lambda: [IMAGES.numpy(), LABELS.numpy()],
    "one-hot labels": lambda: (IMAGES, one_hot()),
    "one-hot bool labels": lambda: (IMAGES, one_hot().bool()),
    "loader": lambda: DataLoader(TensorDataset(IMAGES, LABELS), 8),
    "loader in another order": lambda: DataLoader(TensorDataset(IMAGES, LABELS), 8, shuffle=True),
    "loader with its own generator": lambda: DataLoader(
        TensorDataset(IMAGES, LABELS), 8, shuffle=True, generator=torch.Generator()
    ),
    "loader with a sampler": lambda: DataLoader(
        TensorDataset(IMAGES, LABELS), 8, sampler=WeightedRandomSampler([1.0] * N, N, replacement=False)
    ),
    "loader of a stream": lambda: DataLoader(Stream(), 8),
    "loader of a stream with a length": lambda: DataLoader(SizedStream(), 8),
    "loader of a mapping": lambda: DataLoader(
        {str(i): (IMAGES[i], LABELS[i]) for i in range(N)}, 8, sampler=[str(i) for i in range(N)]
    ),
    "list of batches": lambda: Batches(8),
    "loader of dicts": lambda: DataLoader(Items(lambda i: {"picture": IMAGES[i], "target": LABELS[i]}), 8),
    "loader of named tuples": lambda: DataLoader(Items(lambda i: Sample(IMAGES[i], LABELS[i])), 8),
    "data module": lambda: Module("test"),
    "data module of datasets": lambda: pl.LightningDataModule.from_datasets(
        test_dataset=TensorDataset(IMAGES, LABELS), batch_size=8
    ),
    "data module without a test": lambda: Module("validate"),
    "robust data module": lambda: RobustDataModule(
        Datasets(test=TensorDataset(IMAGES, LABELS), classes=("a", "b", "c"))
    ),
    "dataset spec": lambda: Datasets(test=TensorDataset(IMAGES, LABELS), classes=("a", "b", "c")),
}
PLACES = {name: {"images": "picture", "labels": "target"} for name in ("loader of dicts", "loader of named tuples")}


class Batches:
    """Batches of a class that is nothing but iterable."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return zip(IMAGES.split(self.size), LABELS.split(self.size), strict=True)
