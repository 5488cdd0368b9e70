"""What generated packages import: optimizer base, engines, codecs, the compile cache. Nothing of the compiler."""
