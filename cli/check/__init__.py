"""`check`: whether this machine, or a profile on it, can run. Changes nothing."""
