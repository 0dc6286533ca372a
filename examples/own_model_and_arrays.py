"""A network and arrays of your own, students of your own, a limit on FLOPs. python examples/own_model_and_arrays.py"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import autokd


class Depthwise(nn.Module):
    """A student: one architecture. autokd asks for `classes` because the signature has it."""

    def __init__(self, classes: int, channels: int = 16) -> None:
        super().__init__()
        depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.mix = nn.Sequential(depthwise, nn.Conv2d(channels, 32, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.mix(self.stem(x)).mean((2, 3)))


def my_arrays() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return digits.images.astype(np.float32), digits.target  # (1797, 8, 8) from 0 to 16; labels 0 … 9


def my_network(data: autokd.Data, epochs: int) -> nn.Module:
    """Stands for the large network you have: it takes rows in your data's own units."""
    torch.manual_seed(0)
    first = [nn.BatchNorm2d(1), nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    second = [nn.Conv2d(64, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*first, *second, nn.Linear(128 * 4 * 4, 256), nn.ReLU(), nn.Linear(256, 10))
    x, y = torch.tensor(data.train.x), torch.tensor(data.train.y)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimiser.step()
    return network


def main(budget: str = "2m", epochs_of_teacher: int = 20, **options: Any) -> autokd.SearchResult:
    x, y = my_arrays()
    data = autokd.Data(x, y, name="my-digits")  # no test split given: a fifth is set aside
    teacher = autokd.Teacher(my_network(data, epochs_of_teacher), data, name="my-network")

    limits = {"params": "20k", "flops": "teacher/2"}
    result = autokd.search(teacher, budget, students=[Depthwise, "plain"], constraints=limits, **options)

    student = result.student()  # eval mode; takes rows from 0 to 16, as the arrays are
    with torch.no_grad():
        classes = student(torch.tensor(data.test.x[:8])).argmax(1)
    print("first test rows:", classes.tolist(), "labels:", data.test.y[:8].tolist())
    return result


if __name__ == "__main__":
    main()
