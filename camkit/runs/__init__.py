"""What a command does with a network: one module per command, one loop, one batch.

Formats of files belong to results, tables for people to report.
"""
