"""Files that survive: the layout of a results folder, and reading and writing what lies in it.

Nothing here runs a network, and nothing is worded for people.
"""
