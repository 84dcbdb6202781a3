"""Write the algorithm yourself. Each file runs from the root of the repository.

assignment  the functions to write: start here
check       grades them part by part: `python -m course.assignment.check`
parts       what is right in each part, and what mistakes look like
main_job    trains the README's model with them, beside our curve
solution    a reference, to be read last
"""
