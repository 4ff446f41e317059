"""Training: from scenes and labels to the bundle of a network."""
