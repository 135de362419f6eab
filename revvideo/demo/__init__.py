"""The demo: a small synthetic video data set in Kinetics format on which a Reversible MViT learns within minutes."""
