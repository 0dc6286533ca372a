"""A recipe: everything that decides how one student is trained. Names and numbers only.

A recipe is frozen, validated, hashable and survives a JSON round trip. Its *flat* form, one dotted name per value, is what
search spaces sample, MLflow shows and tables print:

    student.family = resnet        terms.kd.weight = 0.9         augment.rho = 0.5     optim.lr = 0.1
    student.width = 16             terms.kd.temperature = 4      peers.count = 1       ce_weight = 0.1

Which student fields and loss parameters are legal is said by a `Vocabulary`, made from the registries of families and
objectives; this file knows none of them, so that it needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from autokd.errors import RecipeError, nearest
from autokd.rules import Value, Vocabulary, check_fields

VERSION = 1

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Schedule = Literal["constant", "linear", "sigmoid", "decay", "off"]  # of a term's weight
RISING, FALLING = ("linear", "sigmoid"), ("decay", "off")
Stage0 = Literal["none", "smooth"]  # what is done to the teacher before it teaches; made by `stage0`
Chain = Literal["cifar10", "cifar100", "imagenet", "cifar100-clean", "imagenet-clean", "grey"]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Open(BaseModel):
    """A frozen model whose extra fields are scalars named by a registry."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="after")
    def _scalars(self) -> Open:
        for name, value in self.fields.items():
            if not isinstance(value, Value) or (isinstance(value, float) and value != value):
                raise ValueError(f"{name!r} must be a number, a word or true/false, got {value!r}")
        return self

    @property
    def fields(self) -> dict[str, Any]:
        """The registry's own fields, without those every entry has."""
        return dict(sorted((self.model_extra or {}).items()))

    def __hash__(self) -> int:
        return hash(json.dumps(self.model_dump(), sort_keys=True))


class StudentSpec(Open):
    """Which student: a family's name and that family's fields."""

    family: str

    @property
    def key(self) -> str:
        """Equal for equal architectures."""
        return json.dumps(self.model_dump(), sort_keys=True)


class TermSpec(Open):
    """One distillation loss in the sum, with the objective's own parameters as extra fields."""

    objective: str
    weight: Positive
    schedule: Schedule = "constant"
    share: Fraction = 1.0  # of the epochs: where the schedule ends
    floor: Fraction = 0.0  # of the weight: what "decay" and "off" leave

    @model_validator(mode="after")
    def _without_what_has_no_effect(self) -> TermSpec:
        if self.schedule == "constant":
            object.__setattr__(self, "share", 1.0)
        if self.schedule not in FALLING:
            object.__setattr__(self, "floor", 0.0)
        return self

    def factor(self, progress: float) -> float:
        """What the weight is multiplied by at `progress` in [0, 1] of the whole training.

        With t = progress/share, at most 1: "linear" t, "sigmoid" exp(−5(1 − t)²) (Laine, Aila, ICLR 2017), "decay" from 1 down to `floor`
        linearly, "off" 1 and from t = 1 on `floor`.
        """
        t = min(1.0, progress / self.share) if self.share else 1.0
        return {
            "constant": 1.0,
            "linear": t,
            "sigmoid": math.exp(-5 * (1 - t) ** 2),
            "decay": 1 - (1 - self.floor) * t,
            "off": 1.0 if t < 1 else self.floor,
        }[self.schedule]

    @property
    def timing(self) -> dict[str, Value]:
        """The schedule, with those of its fields that have an effect."""
        timing: dict[str, Value] = {"schedule": self.schedule}
        timing |= {"share": self.share} if self.schedule != "constant" else {}
        return timing | ({"floor": self.floor} if self.schedule in FALLING else {})

    @property
    def warm_at(self) -> float:
        """Share of the epochs after which the loss has its full weight."""
        return self.share if self.schedule in RISING else 0.0


class AugmentSpec(Frozen):
    """Which views a student sees. JDA: Zhang et al., ACCV 2022. Rotations: Xu et al., ECCV 2020; Yang et al., IJCAI 2021."""

    policy: Literal["none", "base", "jda", "rotations"] = "base"
    chain: Chain = "cifar100"  # JDA's operations and magnitudes
    p: Fraction = 0.3  # probability that each operation of the chain fires
    rho: Annotated[float, Field(ge=0, le=0.75)] = 0.5  # augmented rows / all rows
    magnitude: Annotated[float, Field(gt=0, le=2)] = 1.0  # scales the chain's magnitudes
    ccd: bool = False  # weigh augmented rows of logit terms by 1 + cos(teacher original, teacher augmented)
    ccd_normalise: bool = False  # divide those weights by their mean
    ccd_form: Literal["cosine", "half", "power", "softened", "centred"] = "cosine"  # see augment.views.ccd_weight
    ccd_power: Annotated[float, Field(gt=0, le=8)] = 1.0  # of form power: (1 + cos)^power
    ccd_temperature: Positive = 4.0  # of form softened: cos of softmax(z/T)
    crops: Literal["own", "shared"] = "own"  # whether each of the rotations of an image is cropped for itself


class PeerSpec(Open):
    """Collaborative peers trained beside the student, with their system's own parameters as extra fields; dropped after training."""

    count: Annotated[int, Field(ge=0, le=3)] = 0
    system: str = "dml"  # how student and peers teach each other
    weight: NonNegative = 1.0
    temperature: Positive = 1.0


class OptimSpec(Frozen):
    """Optimiser and schedule of the student and its peers."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.1  # per step, at the recipe's batch
    weight_decay: NonNegative = 5e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd only
    nesterov: bool = True  # sgd only
    batch: Annotated[int, Field(ge=2, le=65536)] = 128  # base images per step; JDA and rotations add rows to them
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: str = (
        "0.625,0.75,0.875"  # step only: shares of the epochs after which the rate is a tenth; 150, 180, 210 of 240
    )
    warmup: Annotated[float, Field(ge=0, le=0.5)] = 0.05  # share of the epochs
    restart: Annotated[float, Field(ge=0, lt=1)] = (
        0.0  # share of the epochs after which the schedule begins anew, with its warm-up; 0 never
    )

    @field_validator("milestones", mode="before")
    @classmethod
    def _one_alone(cls, given: object) -> object:
        """A single share that was read as a number."""
        return str(given) if isinstance(given, float) else given

    @field_validator("milestones")
    @classmethod
    def _rising_shares(cls, text: str) -> str:
        rule = f"milestones must be rising shares of the epochs between 0 and 1, such as '0.5,0.75', got {text!r}"
        try:
            shares = [float(part) for part in text.split(",")]
        except ValueError:
            raise ValueError(rule) from None
        if not all(low < high for low, high in zip((0.0, *shares), (*shares, 1.0), strict=True)):
            raise ValueError(rule)
        return text


class Recipe(Frozen):
    """One point of the search space. Equal recipes are equal, hash alike and share an `id`."""

    version: Literal[1] = 1
    student: StudentSpec
    stage0: Stage0 = "none"  # of the teacher, before it teaches: "smooth" is purf
    terms: tuple[TermSpec, ...] = ()
    term_scale: Literal["own", "initial"] = (
        "own"  # "initial": a term's weight counts in units of its loss before training
    )
    ce_weight: NonNegative = 1.0
    ce_rows: Literal["all", "original"] = "all"  # whether augmented rows have a cross-entropy, too
    label_smoothing: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # share of the label that is spread over all classes
    augment: AugmentSpec = AugmentSpec()
    peers: PeerSpec = PeerSpec()
    optim: OptimSpec = OptimSpec()

    @model_validator(mode="after")
    def _canonical(self) -> Recipe:
        names = [term.objective for term in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"each objective may appear once in terms, got {', '.join(names)}")
        if {"kd", "dkd"} <= set(names):
            raise ValueError("kd and dkd compare the same logits: use one of them")
        if not self.terms and self.ce_weight == 0:
            raise ValueError("ce_weight is 0 and there are no terms: nothing to learn from")
        if not self.terms:  # nobody listens to the teacher
            object.__setattr__(self, "stage0", "none")
        object.__setattr__(self, "terms", tuple(sorted(self.terms, key=lambda term: term.objective)))
        return self

    # ---- JSON

    def to_json(self) -> str:
        """Canonical JSON: equal recipes give equal text."""
        return json.dumps(_canonical(self.to_dict()), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Raises RecipeError naming the first field that breaks a rule."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and endless nesting
            raise RecipeError(f"a recipe must be JSON: {error}; write one with recipe.to_json()") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: object) -> Recipe:
        if not isinstance(data, dict):
            raise RecipeError(f"a recipe must be a JSON object with 'student', got {type(data).__name__}")
        if data.get("version", VERSION) != VERSION:
            raise RecipeError(f"recipe version must be {VERSION}, got {data['version']!r}; re-create the recipe")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError(_first_problem(error)) from None

    @cached_property
    def id(self) -> str:
        """Ten hex digits that name this recipe. Values at their defaults do not count, so that a field added later changes no id."""
        text = json.dumps(_canonical(self.model_dump(mode="json", exclude_defaults=True)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def __hash__(self) -> int:
        return hash(self.id)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Recipe:
        """A copy with some fields replaced, and with an `id` of its own (pydantic would copy the remembered one)."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("id", None)
        return copied

    # ---- the flat form

    def flat(self) -> dict[str, Value]:
        """One dotted name per value, in a stable order."""
        out: dict[str, Value] = {"student.family": self.student.family}
        out |= {f"student.{name}": value for name, value in self.student.fields.items()}
        for term in self.terms:
            out[f"terms.{term.objective}.weight"] = term.weight
            out |= {f"terms.{term.objective}.{name}": value for name, value in {**term.timing, **term.fields}.items()}
        out |= {name: getattr(self, name) for name in PLAIN}
        for section in ("augment", "peers", "optim"):
            out |= {f"{section}.{name}": value for name, value in getattr(self, section).model_dump().items()}
        return out

    @classmethod
    def from_flat(cls, values: Mapping[str, Value]) -> Recipe:
        """The inverse of `flat`; fields left out take their defaults. Raises RecipeError."""
        nested: dict[str, Any] = {"student": {}}
        terms: dict[str, dict[str, Value]] = {}
        for name, value in values.items():
            section, _, rest = name.partition(".")
            if name in PLAIN:
                nested[name] = value
            elif section == "terms" and "." in rest:
                objective, _, parameter = rest.rpartition(".")
                terms.setdefault(objective, {"objective": objective})[parameter] = value
            elif section in ("student", "augment", "peers", "optim") and rest:
                nested.setdefault(section, {})[rest] = value
            else:
                raise RecipeError(f"unknown recipe field {name!r}; {nearest(name, FLAT_NAMES)}")
        nested["terms"] = [terms[name] for name in sorted(terms)]
        return cls.from_dict(nested)

    # ---- names checked against the registries

    def check(self, vocabulary: Vocabulary) -> Recipe:
        """Raise RecipeError for unknown families, objectives, systems or fields and for values outside their ranges."""
        rules = vocabulary.families.get(self.student.family)
        if rules is None:
            raise RecipeError(
                f"unknown student family {self.student.family!r}; {nearest(self.student.family, vocabulary.families)}"
            )
        check_fields(f"family {self.student.family!r}", self.student.fields, rules)
        for term in self.terms:
            if term.objective not in vocabulary.objectives:
                raise RecipeError(
                    f"unknown objective {term.objective!r}; {nearest(term.objective, vocabulary.objectives)}"
                )
            check_fields(f"objective {term.objective!r}", term.fields, vocabulary.objectives[term.objective])
            self.check_views(term.objective, vocabulary.rotated(term.objective))
        if self.peers.system not in vocabulary.systems:
            raise RecipeError(
                f"unknown system of peers {self.peers.system!r}; {nearest(self.peers.system, vocabulary.systems)}"
            )
        check_fields(f"system {self.peers.system!r}", self.peers.fields, vocabulary.systems[self.peers.system])
        return self

    def check_views(self, objective: str, rotated: bool) -> None:
        """Raise RecipeError unless the views are those the objective needs."""
        if rotated and self.augment.policy != "rotations":
            raise RecipeError(
                f"objective '{objective}' compares rotated views, augment.policy is '{self.augment.policy}'; set it to 'rotations'"
            )

    def without_distillation(self) -> Recipe:
        """The control: same student, optimiser and base views; no terms, peers or augmented rows."""
        return self.model_copy(
            update={
                "stage0": "none",
                "terms": (),
                "ce_weight": 1.0,
                "label_smoothing": 0.0,
                "peers": PeerSpec(),
                "augment": self._base_views(),
            }
        )

    def with_default_kd(self) -> Recipe:
        """The control: same student and optimiser with KD at T = 4, CE .1, KD .9 (RepDistiller's defaults)."""
        kd = TermSpec.model_validate({"objective": "kd", "weight": 0.9, "temperature": 4.0})
        return self.without_distillation().model_copy(update={"terms": (kd,), "ce_weight": 0.1})

    def _base_views(self) -> AugmentSpec:
        return AugmentSpec(policy="none" if self.augment.policy == "none" else "base")


PLAIN = ("stage0", "term_scale", "ce_weight", "ce_rows", "label_smoothing")  # fields of no section
FLAT_NAMES = (
    "student.family",
    *PLAIN,
    *(f"augment.{name}" for name in AugmentSpec.model_fields),
    *(f"peers.{name}" for name in PeerSpec.model_fields),
    *(f"optim.{name}" for name in OptimSpec.model_fields),
)


def _canonical(data: Any) -> Any:
    """4.0 and 4 are one number: equal recipes have equal text."""
    if isinstance(data, dict):
        return {name: _canonical(value) for name, value in data.items()}
    if isinstance(data, list):
        return [_canonical(value) for value in data]
    return int(data) if isinstance(data, float) and data.is_integer() else data


def _first_problem(error: ValidationError) -> str:
    """One line for the first of pydantic's complaints."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "recipe"
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        section = where.split(".")[0]
        known = [name.split(".")[-1] for name in FLAT_NAMES if name.startswith(section + ".")] or list(
            Recipe.model_fields
        )
        return f"unknown recipe field {where!r}; {nearest(where.split('.')[-1], known)}"
    shown = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    return f"recipe field {where!r}: {text}{shown}"
