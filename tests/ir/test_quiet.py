import logging
import sys
import warnings

import pytest
from graphwright.ir.quiet import silence


def test_nothing_comes_out_and_everything_is_as_before_afterwards(capsys, caplog):
    with pytest.raises(ValueError, match="passes"), silence():
        print("printed")
        print("complained", file=sys.stderr)
        warnings.warn("warned", stacklevel=1)
        logging.getLogger("library").error("logged")
        raise ValueError("an error passes")
    assert capsys.readouterr() == ("", "") and not caplog.records
    print("again")
    logging.getLogger("library").error("heard")
    assert capsys.readouterr().out == "again\n" and [each.message for each in caplog.records] == ["heard"]
