"""A profile's device on this machine: made ready, reloaded, taken down, remembered. For the commands and the daemon
alike; nothing here prints a command's output or starts a process but the user's hooks.
"""
