"""Networks trained with labels: the ceiling of what the unsupervised methods can reach."""
