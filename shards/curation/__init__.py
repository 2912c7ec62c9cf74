"""New versions of a dataset that rewrite no shard: selecting, finding duplicates, comparing, clearing away."""
