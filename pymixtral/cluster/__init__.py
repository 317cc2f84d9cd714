"""Several machines: the server and its batches on a cluster of Ray.

Importing pymixtral does not import Ray; the modules here that do are reached only by who asks for a cluster.
"""
