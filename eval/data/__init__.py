"""What is evaluated on: labelled images of several kinds, and their splits."""
