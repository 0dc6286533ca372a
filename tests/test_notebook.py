"""In a notebook: classes defined in a cell serve as teacher and as student, and what is shown can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

CELLS = (
    """
import numpy as np, torch
from torch import nn
import autokd
torch.manual_seed(0)

class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))
    def forward(self, x):
        return self.net(x)

class Small(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(6, classes)
    def forward(self, x):
        return self.layer(x)
""",
    """
rng = np.random.default_rng(0)
y = np.arange(300) % 3
x = (3 * rng.normal(size=(3, 6))[y] + rng.normal(size=(300, 6))).astype("float32")
data = autokd.Data(x, y, name="clouds")
big = Big()
optimiser = torch.optim.Adam(big.parameters(), lr=0.02)
for _ in range(40):
    optimiser.zero_grad()
    nn.functional.cross_entropy(big(torch.tensor(data.train.x)), torch.tensor(data.train.y)).backward()
    optimiser.step()
teacher = autokd.Teacher(big, data)
""",
    """
result = autokd.search(teacher, "3 trials", students=[Small, "mlp"], epochs=3, executor="inline", run_dir="run",
                       tracking_uri="sqlite:///mlflow.db")
""",
    """
student = result.student()
print(type(student).__name__, student(torch.tensor(data.test.x)).shape, student.training)
result.leaderboard()
""",
    "autokd.resume('run', '1 trial', teacher=teacher, students=[Small]).headline()",
)


def run(cells: tuple[str, ...], folder: Path) -> list[Any]:
    """Execute the cells in a kernel of their own; what each has put out. Fails at the first exception."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(
        notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return [cell.outputs for cell in notebook.cells]


def text_of(outputs: list[Any]) -> str:
    """What a reader sees: streams and plain text, colours taken out."""
    parts = [out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs]
    return re.sub(r"\x1b\[[0-9;]*m", "", "".join(parts))


@pytest.mark.timeout(150)
def test_a_search_in_a_notebook(tmp_path: Path) -> None:
    _, _, searched, used, resumed = run(CELLS, tmp_path)
    said = text_of(searched)
    for word in ("teacher teacher: validation accuracy", "Plan", "rungs", "new best", "Result of", "best student"):
        assert word in said, word
    assert "run folder" in said and "MLflow" in said and "Error" not in said
    assert len(said.splitlines()) < 80, "the live panel must not be printed again and again"
    assert not [out for out in searched if out.get("name") == "stderr"], text_of(searched)
    assert re.match(r"(Small|MLP) torch\.Size\(\[\d+, 3\]\) False", text_of(used))
    assert "text/html" in used[-1]["data"]  # the leaderboard, as a table
    assert "a student of" in text_of(resumed[-1:])
    assert (tmp_path / "mlflow.db").exists()
