"""The command line: one module per subcommand, with its arguments and exit codes. Other packages do the computation."""
