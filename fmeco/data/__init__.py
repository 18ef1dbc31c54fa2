"""Turn a dataset into batches: sample order, loading, caches and subsets."""
