"""One worker each: its process, its stage of life, its messages and who may send which. What they do together is the
crew's, one folder up, which nothing here imports."""
