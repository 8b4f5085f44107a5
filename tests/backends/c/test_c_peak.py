"""The machine's peaks: measured once, read back, and of a size that a machine can have."""

from __future__ import annotations

import pytest

from vqc.backends.c import peak
from vqc.backends.c.build import find_compiler
from vqc.backends.c.cost import DEFAULT
from vqc.backends.c.peak import _path, known_peaks, measured_peaks, name_in


def test_peaks_are_measured_once_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setenv("VQC_CACHE", str(tmp_path))
    compiler = find_compiler()
    assert known_peaks("native", compiler) is DEFAULT
    peaks = measured_peaks("native", compiler)
    assert set(peaks.macs) == {"f32", "int8", "binary"} and set(peaks.copy) == {"l1", "l2", "dram"} and peaks.measured
    assert 0.1 < peaks.macs["f32"] < peaks.macs["binary"] < 1e5
    assert peaks.macs["f32"] < 2 * peaks.macs["int8"] and 0.1 < peaks.copy["dram"] < 2 * peaks.copy["l1"]
    with monkeypatch.context() as m:
        m.setattr(peak, "_measure", None)  # nobody measures
        assert measured_peaks("native", compiler) == peaks == known_peaks("native", compiler)
    _path("native", compiler).write_text('{"macs": 3}')  # damaged: measured again
    assert known_peaks("native", compiler) is DEFAULT
    assert set(measured_peaks("native", compiler).macs) == set(peaks.macs)


@pytest.mark.parametrize(("cpuinfo", "name"), [
    ("model\t: 17\nmodel name\t: AMD EPYC\ncpu family\t: 25\n", "AMD EPYC (family 25, model 17)"),
    ("cpu family\t: 6\nmodel\t: 143\nmodel name\t: Intel(R) Xeon(R) 8481C\n", "Intel(R) Xeon(R) 8481C"),
    ("processor\t: 0\nBogoMIPS\t: 50.00\n", ""), ("", ""),
])  # fmt: skip
def test_a_name_that_hides_its_number_comes_with_its_kind(cpuinfo, name):
    assert name_in(cpuinfo) == name
