"""The mark of tests that want an accelerator; where there is none they are skipped, saying so."""

import pytest
import torch

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
