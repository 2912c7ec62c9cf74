"""Pre-training: a dataset streams in, PerA trains a vision transformer, a run folder comes out.

A run holds its resolved configuration, metrics, checkpoints that resume exactly, and an export of the
teacher's backbone that timm loads without this package. Method: Shen et al., arXiv 2505.19447.
"""
