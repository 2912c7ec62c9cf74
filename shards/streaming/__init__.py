"""The exact stream: the order of samples, mixtures, state, what is read ahead of a store, and its commands."""
