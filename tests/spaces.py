"""A vocabulary without registries, a small space, and random spaces that are valid by construction."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import strategies as st

from autokd.rules import Rule, Vocabulary

CONVOLUTIONAL = {
    "width": Rule("int", 16, 4, 256),
    "depth1": Rule("int", 1, 1, 18),
    "depth2": Rule("int", 1, 0, 18),
    "depth3": Rule("int", 1, 0, 18),
}
TEMPERATURE = Rule("float", 4.0, 0.5, 50.0)
PART = Rule("float", 1.0, 0.0, 100.0)
VOCABULARY = Vocabulary(
    families={
        "resnet": CONVOLUTIONAL,
        "plain": CONVOLUTIONAL,
        "mobilenet": CONVOLUTIONAL | {"expand": Rule("int", 4, 1, 6)},
        "mlp": {"width": Rule("int", 64, 4, 4096), "depth": Rule("int", 2, 0, 6)},
        "my.nets:Tiny": {"width": Rule("int", 8, 1, 64)},
    },
    objectives={
        "kd": {"temperature": TEMPERATURE},
        "dkd": {"alpha": PART, "beta": PART, "temperature": TEMPERATURE},
        "dist": {"beta": PART, "gamma": PART, "temperature": TEMPERATURE},
        "at": {},
        "fitnet": {"stage": Rule("choice", "middle", choices=("first", "middle", "last"))},
        "rkd": {"distance": Rule("float", 25.0, 0.0, 250.0), "angle": Rule("float", 50.0, 0.0, 500.0)},
        "my.losses:Angle": {"scale": Rule("float", 1.0, 0.1, 10.0)},
    },
    systems={
        "dml": {},
        "ffcl": {
            "gamma": Rule("float", 0.1, 0.0, 10.0),
            "fusion": Rule("choice", "depthwise", choices=("depthwise", "add", "off")),
        },
    },
)

SMALL = """\
version: 1
about: for tests
task: classification
epochs: {max: 9}
fields:
  select.logits: {choice: [none, kd, dkd], prior: kd}
  select.hints: {choice: [none, at], prior: none}
  student.family: {choice: [resnet, mlp], prior: resnet}
  student.resnet.width: {int: [4, 64], log: true, prior: 16}
  student.resnet.depth1: {int: [1, 9], step: 2}
  student.mlp.width: {int: [8, 256], log: true}
  ce_weight: {float: [0.05, 2], log: true, prior: 0.1}
  terms.kd.weight: {float: [0.05, 20], log: true, prior: 0.9, spread: 0.1}
  terms.kd.temperature: {float: [1, 20], log: true, prior: 4}
  terms.dkd.weight: 1
  terms.dkd.beta: {float: [0.25, 16], log: true}
  terms.at.weight: {float: [10, 1e4], log: true, prior: 1000}
  augment.policy: {choice: [base, jda]}
  augment.rho: {choice: [0.333, 0.5, 0.667], prior: 0.5, when: {augment.policy: jda}}
  augment.ccd: {choice: [false, true], when: {augment.policy: jda, select.logits: [kd, dkd]}}
  peers.count: {int: [0, 3], prior: 0}
  peers.weight: {float: [0.1, 4], when: {peers.count: [1, 2, 3]}}
  optim.name: sgd
  optim.lr: {float: [1e-2, 0.3], log: true}
first:
  - name: KD (Hinton 2015)
    set: {select.logits: kd, terms.kd.weight: 0.9, terms.kd.temperature: 4, ce_weight: 0.1}
  - name: DKD (Zhao 2022)
    set: {select.logits: dkd, terms.dkd.beta: 8, ce_weight: 1}
  - name: KD + AT
    set: {select.logits: kd, select.hints: at, ce_weight: 1}
"""

FLOATS = {  # legal ranges, wide
    "optim.lr": (1e-4, 1.0),
    "optim.weight_decay": (1e-6, 0.1),
    "augment.p": (0.01, 1.0),
    "augment.magnitude": (0.1, 2.0),
    "peers.weight": (0.01, 10.0),
}
INTS = {"optim.batch": (2, 512), "peers.count": (0, 3)}
RANGES: dict[str, tuple[Any, Any]] = {**FLOATS, **INTS}
CHOICES: dict[str, list[Any]] = {
    "augment.policy": ["none", "base", "jda"],
    "augment.chain": ["cifar10", "cifar100", "imagenet"],
    "optim.name": ["sgd", "adamw"],
    "augment.ccd": [False, True],
    "augment.rho": [0, 0.25, 0.5],
}


@st.composite
def ranges(draw: st.DrawFn, kind: str, low: Any, high: Any) -> dict[str, Any]:
    """{float: [a, b], …} or {int: [a, b], …} within [low, high]."""
    if kind == "int":
        a: Any = draw(st.integers(int(low), int(high) - 1))
        b: Any = draw(st.integers(a + 1, int(high)))
    else:
        a = draw(st.floats(low, low + 0.4 * (high - low)))
        b = draw(st.floats(low + 0.6 * (high - low), high))
    spec: dict[str, Any] = {kind: [a, b]}
    if a > 0 and draw(st.booleans()):
        spec["log"] = True
    elif kind == "int" and draw(st.booleans()):
        spec["step"] = draw(st.sampled_from([n for n in range(1, b - a + 1) if (b - a) % n == 0][:20]))
    if draw(st.booleans()):
        steps = draw(st.integers(0, (b - a) // spec.get("step", 1))) if kind == "int" else 0
        spec["prior"] = a + steps * spec.get("step", 1) if kind == "int" else draw(st.floats(a, b))
        spec["spread"] = draw(st.floats(0.001, 1.0))
    return spec


@st.composite
def choices(draw: st.DrawFn, values: list[Any]) -> dict[str, Any]:
    """{choice: [some of the values], …}."""
    kept = draw(st.lists(st.sampled_from(values), min_size=1, unique=True))
    return {"choice": kept} | ({"prior": draw(st.sampled_from(kept))} if draw(st.booleans()) else {})


@st.composite
def space_texts(draw: st.DrawFn) -> str:
    """YAML of a random valid space, with conditions on fields drawn before."""
    logits = ["none", *draw(st.lists(st.sampled_from(["kd", "dkd", "my.losses:Angle"]), unique=True))]
    families = draw(st.lists(st.sampled_from(sorted(VOCABULARY.families)), min_size=1, unique=True))
    fields: dict[str, Any] = {"select.logits": {"choice": logits}, "student.family": {"choice": families}}
    for family in families:
        fields[f"student.{family}.width"] = draw(ranges("int", 4, 64))
    for objective in logits[1:]:
        fields[f"terms.{objective}.weight"] = draw(ranges("float", 0.01, 100.0))
        if "temperature" in VOCABULARY.objectives[objective]:
            fields[f"terms.{objective}.temperature"] = draw(st.one_of(st.just(4), ranges("float", 0.5, 50.0)))
    systems = draw(st.lists(st.sampled_from(sorted(VOCABULARY.systems)), unique=True))
    if systems:
        fields["peers.system"] = {"choice": systems}
    if "ffcl" in systems:
        fields["peers.ffcl.gamma"] = draw(ranges("float", 0.0, 10.0))
    tables: list[tuple[str, dict[str, Any]]] = [("float", FLOATS), ("int", INTS), ("choice", CHOICES)]
    names = draw(st.permutations([(kind, name) for kind, table in tables for name in table]))
    for kind, name in names[: draw(st.integers(0, len(names)))]:
        spec = draw(choices(CHOICES[name]) if kind == "choice" else ranges(kind, *RANGES[name]))
        deciders = [other for other, found in fields.items() if isinstance(found, dict) and "choice" in found]
        for other in draw(st.lists(st.sampled_from(deciders), max_size=2, unique=True)):
            spec.setdefault("when", {})[other] = draw(st.sampled_from(fields[other]["choice"]))
        fields[name] = spec
    data = {"version": 1, "epochs": {"max": draw(st.integers(1, 500))}, "fields": fields}
    return yaml.safe_dump(data, sort_keys=False)
