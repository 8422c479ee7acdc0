"""The memory of a device, in words."""

import re
import subprocess
import sys

import psutil
import pytest
import torch

from dehazexl.viewing.device_memory import in_use


def test_a_cpu_has_the_memory_of_the_machine() -> None:
    words = in_use("cpu")
    found = re.fullmatch(r"(\d+\.\d) of (\d+) GB of memory in use", words)
    assert found is not None, words
    total = psutil.virtual_memory().total / 2**30
    assert 0 < float(found[1]) <= total and int(found[2]) == round(total)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="cuda:99"):
        in_use("cuda:99")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_is_asked_only_once_it_is_used() -> None:
    code = (
        "import torch; from dehazexl.viewing.device_memory import in_use; assert in_use('cuda') == '';"
        "kept = torch.zeros(2**28, device='cuda'); print(in_use('cuda'))"  # 1 GB
    )
    words = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    used, _, total, *_ = words.split()
    assert 1 <= float(used) <= int(total) == round(torch.cuda.get_device_properties(0).total_memory / 2**30)
