"""Runtime of generated packages: optimizer base, engines, codecs, the compile cache. Nothing of the compiler."""
