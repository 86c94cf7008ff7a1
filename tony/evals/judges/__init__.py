"""Independent graders: none of them is part of the model's own answer path."""
