import json
import os
import subprocess
import sys

from qagent_mlx.models.download import sample_folder


def run(code):
    """What a new process prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", "import json, sys\n" + code],
        env=os.environ,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "PyTorch" not in done.stderr  # transformers' advice, which mlx_lm switches off
    return json.loads(done.stdout)


def test_a_shops_own_policy_is_loaded_without_transformers():
    heavy = run(
        "import qagent_mlx; qagent_mlx.configure(); from pathlib import Path; from qagent_mlx.policy.files import load_policy; from qagent_mlx.policy.lora import LoraConfig\n"
        "import qagent_mlx.agent.recommend\n"
        f"load_policy(Path({str(sample_folder())!r})).add_lora(LoraConfig())\n"
        "print(json.dumps([n for n in ('transformers', 'huggingface_hub', 'scipy.optimize')"
        " if n in sys.modules]))"
    )
    assert heavy == []


def test_mlx_lms_own_names_are_there_when_they_are_asked_for():
    # generate is a submodule and a function: as in mlx-lm itself the function stays.
    for code in (
        "from mlx_lm import generate, load, convert",
        "import mlx_lm.models.cache\nfrom mlx_lm import generate, load, convert",
        "from mlx_lm.generate import generate_step\nfrom mlx_lm import generate, load, convert",
        "import mlx_lm.convert\nfrom mlx_lm.generate import generate as _\n"
        "from mlx_lm import *\nimport mlx_lm; convert = mlx_lm.convert",
    ):
        found = run(
            "import qagent_mlx; qagent_mlx.configure(); import mlx_lm\n" + code + "\n"
            "print(json.dumps([callable(generate), callable(load), callable(convert),"
            " type(mlx_lm).__name__, mlx_lm.__version__ > '0', 'utils' in dir(mlx_lm)]))"
        )
        assert found == [True, True, True, "module", True, True], code


def test_the_tuner_package_is_whole_when_it_is_asked_for():
    found = run(
        "import qagent_mlx; qagent_mlx.configure()\nfrom mlx_lm.tuner.lora import LoRALinear\n"
        "before = 'transformers' in sys.modules\n"
        "from mlx_lm.tuner import linear_to_lora_layers, train\nimport mlx_lm.tuner.utils\n"
        "print(json.dumps([before, callable(train),"
        " linear_to_lora_layers is mlx_lm.tuner.utils.linear_to_lora_layers]))"
    )
    assert found == [False, True, True]


def test_what_mlx_lm_has_not_got_is_an_attribute_error():
    found = run(
        "import qagent_mlx; qagent_mlx.configure(); import mlx_lm\nprint(json.dumps([hasattr(mlx_lm, 'nothing'),"
        " hasattr(mlx_lm, '__nothing__'), hasattr(mlx_lm, 'load')]))"
    )
    assert found == [False, False, True]


def test_sparse_matrices_load_no_compiler_and_numpy_stays_whole():
    found = run(
        "import qagent_mlx; qagent_mlx.configure(); from qagent_mlx.utils.sparse import sparse\n"
        "before = [n for n in ('numpy.f2py.crackfortran', 'unittest') if n in sys.modules]\n"
        "import numpy, numpy.testing, numpy.polynomial.hermite\n"
        "numpy.testing.assert_allclose(sparse.eye(2).toarray(), [[1, 0], [0, 1]])\n"
        "from numpy.polynomial import Polynomial\nimport numpy.f2py\n"
        "print(json.dumps([before, Polynomial([1, 2])(3), callable(numpy.f2py.main)]))"
    )
    assert found == [[], 7, True]
