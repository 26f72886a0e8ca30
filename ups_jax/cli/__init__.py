"""The command line: arguments, one module per subcommand, exit codes. Computation is in the packages below."""
