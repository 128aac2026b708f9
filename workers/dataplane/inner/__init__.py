"""The packets inside the tunnel: super-packets, fragments, MSS, ECN, errors to their senders. No keys, no sessions'
state.
"""
