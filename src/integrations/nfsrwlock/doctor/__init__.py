"""
``nfsrwlock doctor``: is this mount fit for locks?

What it does not promise: rounds that went well prove nothing about the ones to come, and what a server loses when it
crashes (an export that answers before it has written, ``async``) cannot be seen from a client.
"""
