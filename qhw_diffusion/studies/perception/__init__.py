"""Which of two pictures people prefer: a page that asks them, and the analysis of what they answered.

Unlike the other studies nothing is run in cells: `make` writes the page, people answer it, `analyse` reads the answers.
"""
