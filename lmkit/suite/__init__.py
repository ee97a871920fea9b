"""Suites of tests for language models: minimal pairs and formulas over regions of sentences."""

from lmkit.suite.comparison import compare
from lmkit.suite.evaluation import Reading, evaluate_suite
from lmkit.suite.items import Item, Suite
from lmkit.suite.reading import Source

__all__ = ["Item", "Reading", "Source", "Suite", "compare", "evaluate_suite"]
