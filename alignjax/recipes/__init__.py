"""Programs of several stages. Each stage writes its result once; a rerun goes on after it."""
