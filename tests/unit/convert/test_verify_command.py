"""`genlab verify` over several files."""

import torch
from safetensors.torch import save_file

from genlab.commands.verify import verify


def test_a_file_that_cannot_be_read_hides_nothing_of_the_later_ones(tmp_path, capsys):
    (tmp_path / "a.safetensors").write_bytes(b"no golden file")
    save_file({"out.x": torch.ones(1)}, tmp_path / "b.safetensors", {"about": "nothing"})
    known = {"system": "nobody", "case": "nothing"}
    save_file({"out.x": torch.ones(1)}, tmp_path / "c.safetensors", known | {"config": "{"})
    save_file({"out.x": torch.ones(1)}, tmp_path / "d.safetensors", known)
    assert verify([tmp_path, tmp_path / "absent.safetensors"]) == 1
    said = capsys.readouterr().out
    notes = ["not a readable", "names no system and case", "is not JSON", "not supported", "not a readable"]
    assert [
        line for line, note in zip((x for x in said.splitlines() if "FAILED" in x), notes) if note not in line
    ] == []
    assert said.splitlines()[-1] == "5 files, 5 outputs failed"
