"""Two files here are programs, and import torch: whoever renews recorded numbers installs it."""

collect_ignore = ["reference.py", "trl_values.py"]
