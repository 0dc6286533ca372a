"""The comparison of systems, made so small that it takes seconds: what it trains, keeps and tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.methods import comparison, joint, labels, proportion, systems, times, worlds
from benchmarks.methods.options import Options, paired, spread
from benchmarks.methods.trainings import Cell

torch.set_num_threads(1)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("autokd.teacher.cpu_count", lambda: 1)
    monkeypatch.setitem(worlds.SIZES, "digits", worlds.Size(100, 200, 50, 1))
    worlds.world.cache_clear()
    yield Options("digits", tmp_path, epochs=1, seeds=2, lanes=1, results=tmp_path / "results")
    worlds.world.cache_clear()


def test_every_paper_is_compared_with_the_same_student() -> None:
    known = systems.systems()
    assert list(known)[:2] == [systems.PLAIN, systems.KD] and {"dkd", "jda_ccd", "dml"} <= set(known)
    assert {recipe.student for recipe in known.values()} == {worlds.STUDENT}
    assert known[systems.KD].ce_weight == 0.1 and known["jda_ccd"].augment.ccd
    assert known["triplet"].augment.policy == "base" and known["kd, no crops"].augment.policy == "none"
    assert known["past"].optim.restart == 0.5 and known["past"].optim.schedule == worlds.OPTIM.schedule


def test_the_table_of_systems(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: systems.systems()[name] for name in (systems.PLAIN, systems.KD, "jda_ccd")}
    monkeypatch.setattr(comparison, "systems", lambda: chosen)
    text = comparison.comparison(options)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5 and "| jda_ccd |" in rows[4] and "| 2.00 |" in rows[4] and "| +0.00 ± 0.00 |" in rows[2]
    lines = (options.results / "trainings.jsonl").read_text().splitlines()
    assert len(lines) == 6  # at one epoch equal compute is equal epochs
    assert comparison.comparison(options) == text  # nothing is trained again
    assert (options.results / "trainings.jsonl").read_text().splitlines() == lines


def test_slow_systems_for_longer_and_what_an_epoch_takes(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "NOT_ABOVE_PLAIN", ("ls",))
    text = comparison.longer(options)
    assert "| 3 epochs |" in text and "| ls |" in text and text.count("\n") == 4
    chosen = {name: systems.systems()[name] for name in (systems.PLAIN, systems.KD, "dml")}
    monkeypatch.setattr(times, "systems", lambda: chosen)
    monkeypatch.setattr(times, "EPOCHS", 2)  # before students at chance fail
    rows = [line.split("|")[1:-1] for line in times.times(options).splitlines()[2:]]
    assert [row[0].strip() for row in rows] == list(chosen) and float(rows[1][2]) == 1.0 < float(rows[2][2])


def test_proportion_and_labels(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proportion, "RHO", (0.0, 0.5))
    monkeypatch.setattr(proportion, "P", (0.2,))
    monkeypatch.setattr(labels, "SHARES", (0.5, 1.0))
    text = proportion.proportion(options)
    assert text.count("|\n") >= 6 and "<svg" in (options.results / "proportion-digits.svg").read_text()
    text = labels.labels(options)
    assert "50% of the labels" in text and "augmented teacher" in text and "the teacher itself" in text


def test_the_joint_search(options: Options) -> None:
    """Which methods came far, from the run folder of a real search."""
    text = joint.joint(replace(options, budget="6 trials", epochs=9))
    assert "6 recipes begun" in text and "| loss | kd |" in text and "| peers | none |" in text
    assert "; failed: " in text and "(published: " in text
    assert joint.joint(replace(options, budget="6 trials", epochs=9)) == text  # told again, not searched again


def test_few_labels_are_the_first_of_every_class(options: Options) -> None:
    few, all_of_them = (worlds.world("digits", options.data, share) for share in (0.2, 1.0))
    assert len(few.data.train.y) == 20 and len(all_of_them.data.train.y) == 100
    assert sorted(set(few.data.train.y.tolist())) == list(range(10))
    assert few.module is not all_of_them.module and few.name == all_of_them.name


def test_scores_in_words() -> None:
    lines = [{"accuracy": 0.5}, {"failed": "nan"}, {"accuracy": 0.6}]
    others = [{"accuracy": 0.4}, {"accuracy": 0.4}, {"accuracy": 0.4}]
    assert spread([0.5, 0.6]) == "55.00% ± 7.07" and spread([]) == "failed"
    assert paired(lines, others) == "+15.00 ± 7.07" and paired([lines[1]], [others[0]]) == "-"


def test_a_cell_is_known_by_what_it_trains_not_by_its_name() -> None:
    recipe = systems.systems()[systems.KD].to_json()
    one, other = (Cell(name, recipe, 0, 5, "digits") for name in ("kd", "KD again"))
    assert one.key == other.key != Cell("kd", recipe, 1, 5, "digits").key
