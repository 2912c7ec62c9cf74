"""The page that says what a dataset is."""
