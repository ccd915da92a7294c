"""What a command does with a network: one module per command, one loop, one batch.

The loop also finds the size of a batch, and goes on with a smaller one when memory runs out.

Formats of files belong to results, tables for people to report.
"""
