"""The pure core of training: state, gradients, the train step and the stages. No disk and no console."""
