"""`check_types` is what annotations are checked with while tests run, shapes included; an int may stand for a float."""

from beartype import BeartypeConf, beartype

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))
