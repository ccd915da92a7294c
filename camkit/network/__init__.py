"""A loaded network and everything that is read from it: layers, passes, derivatives, the game of a layer.

Nothing here knows a method, a score or a results folder.
"""
