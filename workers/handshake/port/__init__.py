"""The datagrams at a server's port: whom each belongs to, how many strangers may come, and their way to Dest. No keys
of a session are in here.
"""
