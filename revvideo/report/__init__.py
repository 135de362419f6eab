"""The run report: one HTML file that shows what a run folder holds, or several runs beside each other."""
