"""Recipes: published results as experiments, the runs of them, and how the two compare."""

from lmkit.recipes.catalogue import config_of, names, recipes
from lmkit.recipes.evaluation import measured, methods_of
from lmkit.recipes.page import check_page, update
from lmkit.recipes.report import foretold, reproduction, table
from lmkit.recipes.status import Status, statuses

__all__ = [
    "Status",
    "check_page",
    "config_of",
    "foretold",
    "measured",
    "methods_of",
    "names",
    "recipes",
    "reproduction",
    "statuses",
    "table",
    "update",
]
