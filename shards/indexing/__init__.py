"""Tables for WebDataset tars that others wrote."""
