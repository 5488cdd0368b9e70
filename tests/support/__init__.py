"""What tests of several folders share: the classes and their settings, targets, devices, small models, specs."""
