"""The course: tour.ipynb, lecture.md, exercises.md and the assignment (plan.md says when)."""
