"""From a dataset to batches: order, loading, caches, subsets."""
