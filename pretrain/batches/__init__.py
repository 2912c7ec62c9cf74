"""From a stream of samples to the batches of a step: crops, patch sets, colours, and the processes that make them."""
