"""The computational core of training: state, gradients, the train step and the stages, without file or console I/O."""
