"""The datagrams at a server's port: classification, admission of strangers, and their relay to Dest.

No session key is used here.
"""
