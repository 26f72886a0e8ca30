"""Using a trained model: loading it, rolling it out in physical units, files of predicted states, and export."""
