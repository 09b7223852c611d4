"""How fast easytorch is: beside a hand-written loop, beside its peers, and over long runs."""
