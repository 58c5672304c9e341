"""
Between a granted step of the protocol and a lock that a program can use: waiting, heartbeats, and what holders learn.

It promises that heartbeats come as long as this process can run and reach the server, and that a holder learns in time
that they do not. It knows neither ``with`` blocks nor re-entrancy.
"""
