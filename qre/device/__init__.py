"""A profile's device on this machine: made ready, reloaded, taken down, its state saved. For the commands and the
daemon alike; nothing here prints a command's output or starts a process except the user's hooks.
"""
