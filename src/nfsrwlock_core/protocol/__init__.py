"""
The protocol of docs/PROTOCOL.md: what one participant of a lock does, one step at a time.

It promises exclusion to whoever obeys its lease. It never sleeps, starts no thread, and reads no clock, no process
table and no environment of its own: these come in by argument, so that the simulation runs what ships.
"""
