"""Random inputs of the scripts: what is drawn, how a script is run on it, and how its answer is judged."""
