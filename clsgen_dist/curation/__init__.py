"""What is wrong with rows and their explanations, and rows sorted by it: kept, for a person to review, rejected.

In: files of rows, the recipe's thresholds and severities. Out: issues with a stable code for each row, and folders
whose files add up to the input. Several passes over a file, in memory that does not grow with it.
"""
