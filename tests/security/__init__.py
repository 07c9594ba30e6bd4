"""Files of people who are mistaken, or worse."""
