"""The bug museum: mistakes that ports of this model made, each as a small change of one run.

A bug changes what the towers are given (operations, config, weights, prepared inputs), never the towers. The same
collection drives `pg2ref break`, the diagnosis and the tests. collection.py lists all of them.
"""
