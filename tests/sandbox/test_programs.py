"""What honest programs need, and what is told about how they ended."""

from __future__ import annotations

import pytest

from tests.sandbox.conftest import TIERS, Lab


def test_the_evidence_of_an_error(lab: Lab) -> None:
    result = lab.run("import pandas as pd\nframe = pd.DataFrame({'a': [1]})\nframe['speed']\n")
    assert result.outcome == "error"
    assert result.exit_code == 1
    assert result.exception == "KeyError: 'speed'"
    assert result.exception_line == 3
    assert 'File "main.py", line 3, in <module>\n    frame[' in result.stderr
    assert "runner.py" not in result.stderr


def test_the_line_is_the_deepest_of_the_models_code(lab: Lab) -> None:
    result = lab.run("def outer():\n    inner()\ndef inner():\n    int('x')\nouter()\n")
    assert result.exception_line == 4


def test_syntax_errors_have_a_line_and_no_frames(lab: Lab) -> None:
    result = lab.run("x = 1\nif x\n    y = 2\n")
    assert result.exception is not None
    assert result.exception.startswith("SyntaxError")
    assert result.exception_line == 2
    assert result.stderr.startswith('  File "main.py", line 2\n')


@pytest.mark.parametrize("code", ["x = '\x00'", "'\ud800'", ""])
def test_code_that_is_hardly_code(lab: Lab, code: str) -> None:
    assert lab.run(code).outcome in ("ok", "error")


def test_errors_in_exit_handlers_and_threads(lab: Lab) -> None:
    result = lab.run("import atexit\nprint('done')\natexit.register(lambda: print('bye'))\n")
    assert result.stdout == "done\nbye\n"
    result = lab.run(
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()"
    )
    assert result.stdout == "late\n"


def test_files_created_changed_and_deleted(any_lab: Lab) -> None:
    with any_lab.workspace() as workspace:
        workspace.put("kept.csv", b"1")
        workspace.put("changed.csv", b"12")
        workspace.put("deep/er/gone.csv", b"123")
        code = """
            import os
            open("kept.csv").read()
            open("changed.csv", "w").write("34")
            os.remove("deep/er/gone.csv")
            os.makedirs("new")
            open("new/ünïcödé 文件.csv", "w").write("12345")
        """
        result = any_lab.run_in(workspace, code)
        assert result.outcome == "ok", result.stderr
        assert result.created == {"new/ünïcödé 文件.csv": 5}
        assert result.changed == {"changed.csv": 2}
        assert result.deleted == ("deep/er/gone.csv",)
        assert workspace.read("new/ünïcödé 文件.csv") == b"12345"


def test_a_workspace_persists_and_temporary_folders_do_not(lab: Lab) -> None:
    with lab.workspace() as workspace:
        lab.run_in(workspace, "for path in ('kept', '/tmp/gone', '/dev/shm/gone'): open(path, 'w').write('x')")
        code = "import os; print(os.listdir('.'), os.path.exists('/tmp/gone'), os.listdir('/dev/shm'))"
        assert lab.run_in(workspace, code).stdout == "['kept'] False []\n"


def test_modules_of_the_workspace_can_be_imported(lab: Lab) -> None:
    with lab.workspace() as workspace:
        workspace.put("server.py", b"value = 5")
        assert lab.run_in(workspace, "import server; print(server.value)").stdout == "5\n"
        assert set(workspace.files()) == {"server.py"}


def test_annotations_mean_what_the_code_says(any_lab: Lab) -> None:
    told = any_lab.literal("""
        import dataclasses
        @dataclasses.dataclass
        class Point:
            x: int = 1
        def area(side: float) -> "float": pass
        print([dataclasses.fields(Point)[0].type is int, area.__annotations__["side"] is float])
    """)
    assert told == [True, True]
    assert any_lab.run("def area(side: Undefined): pass").exception == "NameError: name 'Undefined' is not defined"
    assert any_lab.output("from __future__ import annotations\ndef f(side: Undefined): pass\nprint('ok')") == "ok\n"


def test_the_program_knows_where_it_is(any_lab: Lab) -> None:
    assert any_lab.literal("""
        from pathlib import Path
        import os
        Path(__file__).with_name("out.txt").write_text("1")
        print([os.path.basename(__file__), os.path.dirname(__file__) == os.getcwd(), os.listdir()])
    """) == ["main.py", True, ["out.txt"]]


def test_processes_that_are_spawned(lab: Lab) -> None:
    assert lab.literal("""
        import math, multiprocessing
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            print(pool.map(math.sqrt, [4, 9]))
    """) == [2.0, 3.0]


def test_random_numbers_differ_between_executions(lab: Lab) -> None:
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    first, second = lab.output(code).split(), lab.output(code).split()
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_middle_of_long_output_is_left_out(lab: Lab) -> None:
    result = lab.run("for number in range(100_000): print(number)")
    assert result.stdout.startswith("0\n1\n")
    assert result.stdout.endswith("\n99999\n")
    assert "bytes left out" in result.stdout
    assert result.stdout_bytes == sum(len(str(number)) + 1 for number in range(100_000))


def test_threads_and_processes(any_lab: Lab) -> None:
    code = """
        import os, subprocess, sys
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            print(sum(pool.map(int, range(20))))
        print(subprocess.run([sys.executable, "-c", "print('child')"], capture_output=True, text=True).stdout.strip())
        print(os.popen("echo shell").read().strip())
    """
    assert any_lab.output(code).splitlines() == ["190", "child", "shell"]


def test_multiprocessing(any_lab: Lab) -> None:
    code = """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(abs, [-1, -2]))
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            print(list(pool.map(abs, [-3, -4])))
        queue = multiprocessing.Queue()
        worker = multiprocessing.Process(target=queue.put, args=("queued",))
        worker.start()
        print(queue.get())
        worker.join()
    """
    result = any_lab.run(code)
    if any_lab.tier == "landlock":  # its locks live in /dev/shm, which is the host's
        assert result.exception is not None
        assert result.exception.startswith("PermissionError")
    else:
        assert result.stdout.splitlines() == ["[1, 2]", "[3, 4]", "queued"], result.stderr


@pytest.mark.skipif("landlock" not in TIERS, reason="for Landlock alone")
def test_joblib_runs_one_after_the_other_on_landlock(any_lab: Lab) -> None:
    code = """
        from joblib import Parallel, delayed
        from sklearn.ensemble import RandomForestClassifier
        print(Parallel(n_jobs=2)(delayed(abs)(number) for number in (-1, 2)))
        print(RandomForestClassifier(10, n_jobs=2).fit([[1], [2]], [0, 1]).predict([[1]]).shape)
    """
    assert any_lab.output(code).splitlines() == ["[1, 2]", "(1,)"]


def test_joblib_and_forests(lab: Lab) -> None:
    code = """
        import numpy as np
        from joblib import Parallel, delayed
        from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
        from sklearn.model_selection import cross_val_score
        features = np.random.default_rng(0).normal(size=(200, 4))
        labels = features[:, 0] > 0
        print(Parallel(n_jobs=2)(delayed(abs)(number) for number in (-1, 2)))
        print(RandomForestClassifier(10, n_jobs=2).fit(features, labels).score(features, labels) > 0.9)
        print(cross_val_score(RandomForestClassifier(5), features, labels, n_jobs=2, cv=2).mean() > 0.5)
        print(HistGradientBoostingClassifier(max_iter=5).fit(features, labels).score(features, labels) > 0.8)
    """
    result = lab.run(code)
    assert result.outcome == "ok", result.stderr
    assert result.stdout.splitlines() == ["[1, 2]", "True", "True", "True"]
    assert result.stderr == ""
    assert result.created == {}


def test_asyncio_and_temporary_files(lab: Lab) -> None:
    code = """
        import asyncio, tempfile
        async def main():
            process = await asyncio.create_subprocess_exec("/bin/echo", "hello", stdout=-1)
            return (await process.communicate())[0]
        print(asyncio.run(main()))
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x")
    """
    assert lab.output(code) == "b'hello\\n'\n"


def test_a_figure_is_drawn_to_a_file(any_lab: Lab) -> None:
    code = """
        import matplotlib.pyplot as plt
        plt.plot([1, 2, 3])
        plt.savefig("figure.png")
    """
    result = any_lab.run(code)
    assert result.outcome == "ok", result.stderr
    assert set(result.created) == {"figure.png"}


def test_fifty_megabytes_in_and_out(any_lab: Lab) -> None:
    with any_lab.workspace() as workspace:
        workspace.put("in.bin", bytes(50_000_000))
        code = """
            import os
            data = open("in.bin", "rb").read()
            os.remove("in.bin")
            open("out.bin", "wb").write(data[::-1])
        """
        assert any_lab.run_in(workspace, code).created == {"out.bin": 50_000_000}
        assert len(workspace.read("out.bin")) == 50_000_000


def test_pickles_of_models_pass_from_role_to_role(lab: Lab) -> None:
    with lab.workspace() as workspace:
        workspace.put("train.csv", b"x,y\n1,2\n2,4\n3,6\n")
        first = """
            import pandas as pd
            from sklearn.linear_model import LinearRegression
            train = pd.read_csv("train.csv")
            pd.to_pickle(LinearRegression().fit(train[["x"]], train["y"]), "model.pkl")
        """
        second = "import pandas as pd\nprint(pd.read_pickle('model.pkl').predict(pd.DataFrame({'x': [4]})).round(3))"
        assert lab.run_in(workspace, first).outcome == "ok"
        assert lab.run_in(workspace, second).stdout == "[8.]\n"


def test_classes_of_main_can_be_pickled(lab: Lab) -> None:
    code = """
        import pickle
        class Thing: pass
        print(type(pickle.loads(pickle.dumps(Thing()))).__module__)
        print(__name__)
    """
    assert lab.output(code) == "__main__\n__main__\n"
