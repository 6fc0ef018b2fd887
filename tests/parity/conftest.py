"""Two programs, not tests: they import torch, which only whoever renews recorded numbers installs."""

collect_ignore = ["reference.py", "trl_values.py"]
