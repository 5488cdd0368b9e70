"""What joins generated optimizers to training libraries; each library is imported when it is used, not before."""
