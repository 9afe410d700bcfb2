"""A model, data and recipe that train in milliseconds, for the tests of the loop and their scripts."""

import random

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers.modeling_outputs import SequenceClassifierOutput

from lora_tutorial.training import recipes

WIDTH, CLASSES = 8, 3
torch.set_num_threads(1)  # on tensors this small a second thread only waits, long where the machine is busy


class Points(Dataset):
    """Seeded points of three classes, each a dictionary of tensors."""

    def __init__(self, count: int, seed: int = 0, regression: bool = False) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(CLASSES, (count,), generator=draw)
        self.points = torch.randn(count, WIDTH, generator=draw) + 2 * nn.functional.one_hot(
            self.labels, WIDTH
        )
        self.regression = regression

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        label = self.labels[index].float() if self.regression else self.labels[index]
        return {"points": self.points[index], "labels": label}


class Tiny(nn.Module):
    """A frozen layer, dropout, a trained head, a counter, and a trainable vector that no output reads."""

    def __init__(self, dropout: float = 0.3, classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.norm = nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, classes)
        self.unread = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, points, labels=None):
        if self.training:
            self.seen += len(points)
        logits = self.head(self.dropout(self.norm(torch.tanh(self.body(points)))))
        if self.training and self.dropout.p:  # so that every generator's state matters
            logits = logits * (1 + random.random() / 9 + np.random.rand() / 9)
        loss = None
        if labels is not None and logits.shape[-1] == 1:
            loss = nn.functional.mse_loss(logits.squeeze(-1), labels)
        elif labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class Interrupted(Tiny):
    """Raises KeyboardInterrupt at its ``left``-th training batch."""

    left = 14

    def forward(self, points, labels=None):
        self.left -= self.training
        if self.left == 0:
            raise KeyboardInterrupt
        return super().forward(points, labels)


def recipe(**changes):
    fields = {"epochs": 3, "batch_size": 8, "learning_rate": 0.05, "warmup": 0.25, **changes}
    return recipes.Recipe("test", **fields)


def model(seed: int = 0, **arguments) -> Tiny:
    torch.manual_seed(seed)
    return Tiny(**arguments)


def loaders(count: int = 64, batch_size: int = 8, **arguments):
    data, held_out = Points(count, 1, **arguments), Points(45, 2, **arguments)
    return DataLoader(data, batch_size, shuffle=True), DataLoader(held_out, 8)


class OwnBatches:
    """A batch sampler of the caller's, such as one that buckets by length, with an order for each epoch."""

    def __init__(self, count: int, batch_size: int = 8) -> None:
        self.count, self.batch_size, self.drop_last, self.epoch = count, batch_size, False, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self):
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(100 + self.epoch))
        yield from order.reshape(-1, self.batch_size).tolist()  # (count,) -> (batches, batch size)


def own_loaders(count: int = 64):
    return DataLoader(Points(count, 1), batch_sampler=OwnBatches(count)), None


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
