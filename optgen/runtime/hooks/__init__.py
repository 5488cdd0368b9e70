"""A step where torch calls it: within backward, in a graph of torch.compile, under a gradient scaler."""
