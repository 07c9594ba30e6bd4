"""What Squall runs on: the stack on one machine, decisions, reports."""
