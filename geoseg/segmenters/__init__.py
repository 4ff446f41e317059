"""The tile interface and what implements it."""
