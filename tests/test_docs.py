"""What the README and docs/ say is so: programs run, names exist, options parse, links lead somewhere, lists are complete."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from small import make_small, small_teacher
from test_imports import FLOORS

import autokd
from autokd.cli import cli
from autokd.delivery import read_recipe
from autokd.ledger import EVENTS
from autokd.objectives import OBJECTIVES
from autokd.peers import SYSTEMS, system_of
from autokd.recipe import FLAT_NAMES
from autokd.space import Space, shipped_spaces
from autokd.students import FAMILIES
from autokd.students.describe import describe
from autokd.students.zoo import ZOO
from docs.make_cli import page

ROOT = Path(__file__).parent.parent
SYSTEM_PAGES = sorted((ROOT / "docs" / "methods").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *SYSTEM_PAGES]
pages = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


def text_of(name: str) -> str:
    """A page; with the methods page those of single systems."""
    own = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return "\n".join([own, *map(Path.read_text, SYSTEM_PAGES)]) if name == "methods.md" else own


def description(name: str) -> str:
    """What is written of a loss or system of peers: its page, else its section."""
    alone = ROOT / "docs" / "methods" / f"{name}.md"
    if alone in SYSTEM_PAGES:
        return alone.read_text(encoding="utf-8")
    (section,) = [
        each for each in re.split(r"^#+ ", text_of("methods.md"), flags=re.MULTILINE) if each.startswith(f"`{name}`")
    ]
    return section


def blocks(path: Path, language: str) -> list[str]:
    """Fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


# ---- programs


@pytest.mark.timeout(180)  # four searches and an ONNX export: 16 s alone on two cores
def test_readme_programs_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_small(monkeypatch)
    teacher = small_teacher()
    train, test = teacher.data.train, teacher.data.test
    yours = {"my_network": teacher.module, "x_train": train.x, "y_train": train.y, "x_test": test.x, "y_test": test.y}
    space: dict[str, Any] = {"__name__": "readme", **yours}
    programs = blocks(ROOT / "README.md", "python")
    assert len(programs) >= 4
    for number, program in enumerate(programs):
        exec(compile(program, f"README.md, program {number + 1}", "exec"), space)
    assert "a student of" in capsys.readouterr().out
    assert (tmp_path / "student.onnx").stat().st_size > 1000
    assert space["result"].best is not None


@pages
def test_programs_in_docs_use_what_exists(path: Path) -> None:
    for program in blocks(path, "python"):
        for node in ast.walk(ast.parse(program)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "autokd":
                assert node.attr in autokd.__all__, f"{path.name}: autokd.{node.attr}"


@pages
def test_command_lines_in_docs_parse(path: Path) -> None:
    for line in "\n".join(blocks(path, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if "autokd" in words:
            name, *rest = words[words.index("autokd") + 1 :]
            context = click.Context(
                cli.commands[name], info_name=name, parent=click.Context(cli, **cli.context_settings)
            )
            cli.commands[name].make_parser(context).parse_args(rest)  # raises for options there are not


def test_make_targets_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake (demo|test|check|ui|bench)\b", PAGES[0].read_text(encoding="utf-8")))
    assert {"demo", "test", "ui"} <= named <= targets


def test_the_space_in_the_docs_is_one() -> None:
    (example,) = blocks(ROOT / "docs" / "spaces.md", "yaml")
    space = Space.parse(example, autokd.vocabulary())
    assert space.objectives == ("kd", "dkd") and len(space.first) == 1


def test_the_space_of_the_methods_page_is_one() -> None:
    (example,) = blocks(ROOT / "docs" / "methods.md", "yaml")
    assert Space.parse(example, autokd.vocabulary()).objectives == ("kd", "pkt", "sp", "triplet")


def test_fields_of_peers_on_the_methods_page_fit_a_space() -> None:
    (fields,) = blocks(ROOT / "docs" / "methods.md", "yml")
    head = "version: 1\nepochs: {max: 1}\nfields:\n  student.family: resnet\n"
    space = Space.parse(head + fields, autokd.vocabulary())
    chosen = {"peers.count": 1, "peers.system": "ffcl"}
    assert space.recipe(space.complete(chosen)).peers.fields == {"gamma": 0.1}


def test_terms_of_the_methods_page_are_legal() -> None:
    terms = [json.loads(term) for term in re.findall(r"`(\{\"objective\".*?\})`", text_of("methods.md"))]
    assert len(terms) >= 8
    for term in terms:
        recipe = autokd.Recipe.from_dict({"student": {"family": "resnet"}, "terms": [term]})
        recipe.check(autokd.vocabulary())
        low, high = OBJECTIVES[term["objective"]].weight_range
        assert low <= term["weight"] <= high


# ---- nothing is missing


def test_every_objective_and_system_has_a_heading() -> None:
    of_teachers = {"purf"}  # a method, and neither
    headings = re.findall(r"^### `(\w+)`$", text_of("methods.md"), re.MULTILINE)
    assert set(headings) == {*OBJECTIVES, *SYSTEMS} | of_teachers


def test_every_parameter_of_a_method_is_described() -> None:
    for name, method in {**OBJECTIVES, **SYSTEMS}.items():
        assert [field for field in method.fields if f"`{field}`" not in description(name)] == []


def distilled_by(program: str) -> Any:
    """The recipe that a program hands to `autokd.distill`."""
    given: list[Any] = []

    def distill(teacher: None, recipe: Any) -> SimpleNamespace:
        given.append(recipe)
        return SimpleNamespace(student=None)

    exec(program, {"autokd": SimpleNamespace(distill=distill, smooth=lambda teacher: None), "teacher": None})
    return given[0]


@pytest.mark.parametrize("path", SYSTEM_PAGES, ids=lambda path: path.stem)
def test_a_page_of_a_system_tells_all_that_is_asked(path: Path) -> None:
    """What it does, its formula, its knobs, what it costs, how it is known, and its use from the shell, in Python and in a space."""
    text = path.read_text(encoding="utf-8")
    assert re.match(r"# [^\n]+\n\n", text) and "## Use" in text and "papers/" in text
    assert re.search(r"^\|.*default", text, re.MULTILINE) and re.search(r"[Cc]ost|[Rr]ow|rows", text)
    assert re.search(r"[Ll]evel|[Rr]econstruction|ACCV 2022", text)
    for program in (each for each in blocks(path, "python") if "distill(" in each):
        read_recipe(distilled_by(program))[0].check(autokd.vocabulary())
    for space in blocks(path, "yaml"):
        found = Space.parse(space, autokd.vocabulary())
        found.recipe(found.prior_point())
    assert blocks(path, "python") and blocks(path, "sh")


def test_peers_of_the_methods_page_are_legal() -> None:
    found = [json.loads(peers) for peers in re.findall(r"`(\{\"count\".*?\})`", text_of("methods.md"))]
    assert {peers.get("system", "dml") for peers in found} >= set(SYSTEMS)
    for peers in found:
        recipe = autokd.Recipe.from_dict({"student": {"family": "resnet"}, "peers": peers})
        assert system_of(recipe.check(autokd.vocabulary()).peers) is not None


def test_every_public_name_is_documented() -> None:
    everything = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    missing = [name for name in autokd.__all__ if name != "__version__" and f"autokd.{name}" not in everything]
    assert missing == []


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (autokd.search, "search.md"),
        (autokd.resume, "search.md"),
        (autokd.distill, "search.md"),
        (autokd.Data, "data.md"),
        (autokd.Teacher.fit, "teachers-and-students.md"),
        (autokd.smooth, "methods.md"),
        (autokd.Smoothed, "methods.md"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_argument_is_documented(function: object, name: str) -> None:
    written = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]+)`", without_code(text_of(name))))))
    implied = {"family", "spec", "on_epoch"} if function == autokd.Teacher.fit else set()  # said in words
    arguments = set(inspect.signature(function).parameters) - {"self", "cls"} - implied  # type: ignore[arg-type]
    assert arguments - written == set()


def test_every_recipe_field_is_documented() -> None:
    assert [name for name in FLAT_NAMES if f"`{name}`" not in text_of("spaces.md")] == []


def test_every_shipped_space_is_documented() -> None:
    assert [name for name in shipped_spaces() if f"| `{name}` |" not in text_of("spaces.md")] == []


def test_every_family_is_documented_with_its_ranges() -> None:
    for name, family in FAMILIES.items():
        (row,) = [line for line in text_of("teachers-and-students.md").splitlines() if line.startswith(f"| `{name}` |")]
        for field, rule in family.fields.items():
            said = re.search(rf"`{field}`[^(]*\((\d+), (\d+)–(\d+)\)", row)
            assert said is not None and [*map(int, said.groups())] == [rule.default, rule.low, rule.high], field


@pytest.mark.parametrize("name", ZOO)
def test_sizes_of_published_networks_are_what_they_cost(name: str) -> None:
    (row,) = re.findall(
        rf"^\| `{name}` \| ([\d,]+) \| ([\d,]+) \| (\d+)x", text_of("teachers-and-students.md"), re.MULTILINE
    )
    cost = describe(ZOO[name], {}, (3, 32, 32), 100)
    said = [int(number.replace(",", "")) for number in row]
    assert said == [cost.params, round(cost.flops / 1e6), ZOO[name].smallest]


def test_every_ledger_event_is_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", text_of("architecture.md"), re.MULTILINE)
    assert sorted(rows) == sorted(EVENTS)


def test_command_line_page_is_current() -> None:
    assert text_of("cli.md") == page(), "the commands have changed: run  python -m docs.make_cli"


def test_every_command_of_a_command_has_its_section() -> None:
    sections = set(re.findall(r"^## `(.*)`$", text_of("cli.md"), re.MULTILINE))
    assert sections >= {"autokd search", "autokd tape", "autokd tape verify", "autokd tape clear"}
    assert "--older-than" in text_of("cli.md").partition("## `autokd tape clear`")[2].partition("## ")[0]


def test_architecture_page_and_import_test_have_the_same_floors() -> None:
    (drawn,) = blocks(ROOT / "docs" / "architecture.md", "floors")
    assert [line.split() for line in drawn.splitlines()] == FLOORS


# ---- links


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.*)$", without_code(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{path.name}: {target} has no such heading"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", PAGES[0].read_text(encoding="utf-8")))
    assert linked == {path.name for path in PAGES[1:] if path not in SYSTEM_PAGES}
    of_systems = set(
        re.findall(r"\]\(methods/([\w-]+\.md)\)", (ROOT / "docs" / "methods.md").read_text(encoding="utf-8"))
    )
    assert of_systems == {path.name for path in SYSTEM_PAGES}
