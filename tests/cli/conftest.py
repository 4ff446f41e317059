"""Scenes to train on, as the tests of training have them."""

from tests.training.conftest import crop, footprints, squares  # noqa: F401 - fixtures
