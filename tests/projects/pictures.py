"""Images whose color tells their class, and settings of a quiet Trainer, for the projects."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)
QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}


class Pictures(Dataset):
    """Noisy images (3, 8, 8) in [0, 1], of three classes."""

    def __init__(self, count, seed=0, transform=None):
        source = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 3
        noise = 0.35 * torch.rand(count, 3, 8, 8, generator=source)
        self.images = (0.3 + noise + 0.2 * nn.functional.one_hot(self.labels, 3)[:, :, None, None]).clamp(0, 1)
        self.transform = transform or (lambda image: image)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(self.images[index]), int(self.labels[index])


def normalize(images: Tensor) -> Tensor:
    shape = (-1, 1, 1)
    return (images - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)


def small_net(width=6, classes=3):
    layers = nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4 * width, classes))
