"""Settings of users: names and values, their checks, and the codecs of states that follow from them."""
