"""Several objectives: runs that end in a way to respond for each preference between them.

A method is a module here with ``train(setting, *, ...) -> Respond``, which a config binds as
``losses.method``. `run` calls it and measures what it gives. Configs import methods, so what
is heavy (the training loop, checkpoints, pictures) is imported inside the functions that use it.
"""
