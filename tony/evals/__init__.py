"""Evaluations, the judges that grade them, and the card that shows what came out."""
