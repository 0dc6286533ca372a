"""The spaces of single published systems: their prior is the published recipe, and it trains."""

from __future__ import annotations

import pytest

from autokd.arguments import vocabulary
from autokd.recipe import Recipe
from autokd.space import Space, shipped_spaces

PAPERS = [name for name in shipped_spaces() if name.startswith("papers/")]
# weights and numbers as section 12 and the systems' sections of the methods' reference have them
PUBLISHED = {
    "papers/kd": {"terms.kd.weight": 0.9, "terms.kd.temperature": 4.0, "ce_weight": 0.1},
    "papers/dkd": {"terms.dkd.alpha": 1.0, "terms.dkd.beta": 8.0, "terms.dkd.temperature": 4.0, "ce_weight": 1.0},
    "papers/fitnet": {"terms.fitnet.weight": 100.0, "terms.fitnet.stage": "middle"},
    "papers/at": {"terms.at.weight": 1000.0},
    "papers/sp": {"terms.sp.weight": 3000.0},
    "papers/pkt": {"terms.pkt.weight": 30000.0},
    "papers/nst": {"terms.nst.weight": 50.0},
    "papers/jda_ccd": {"augment.p": 0.3, "augment.rho": 0.5, "augment.ccd": True, "terms.kd.temperature": 4.0},
    "papers/past": {"terms.past.weight": 0.475, "terms.past.temperature": 6.0, "ce_weight": 0.05, "optim.restart": 0.5},
    "papers/ckd_mkt": {
        "peers.gamma": 0.9,
        "peers.t2": False,
        "ce_weight": 0.1,
        "peers.first": 0.5,
        "optim.restart": 0.5,
    },
    "papers/one": {"optim.weight_decay": 1e-4, "optim.nesterov": False, "peers.temperature": 3.0},
    "papers/dml": {"optim.nesterov": True, "peers.count": 1, "peers.temperature": 1.0},
}


def space(name: str) -> Space:
    return Space.load(name, vocabulary())


@pytest.mark.parametrize("name", PAPERS)
class TestEveryPaper:
    def test_its_prior_is_what_is_tried_first(self, name: str) -> None:
        [(title, point)] = space(name).first
        assert point == space(name).prior_point() and any(character.isdigit() for character in title)

    def test_the_network_is_one_of_the_published_ones(self, name: str) -> None:
        assert space(name).recipe(space(name).prior_point()).student.family == "resnet8x4"

    def test_says_where_it_comes_from(self, name: str) -> None:
        comments = [line for line in space(name).text.splitlines() if line.startswith("# ")]
        assert len(comments) >= 2 and space(name).about


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    flat = Recipe.flat(space(name).recipe(space(name).prior_point()))
    assert {field: flat[field] for field in PUBLISHED[name]} == PUBLISHED[name]
