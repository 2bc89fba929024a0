import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from touchstone import environment
from touchstone.canonical import canonical_json, sha256_hex
from touchstone.environment import (
    CgroupLimits,
    capture,
    capture_source,
    cgroup_limits,
    cpu_model,
    differences,
    gate,
    has_commit,
    usable_memory_bytes,
    usable_threads,
)
from touchstone.source_tree import STAMP, read_stamp


@pytest.fixture(scope="module")
def here():
    return capture()


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def git(folder, *arguments):
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *settings, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    write(folder / "code.py", "x = 1\n")
    write(folder / "requirements" / "runtime.txt", "numpy==1.0.0 --hash=sha256:0\npydantic==999\n# comment\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "start")
    return folder


def test_this_machine_is_captured_and_fingerprinted(here):
    parts = here.model_dump(mode="json", exclude={"fingerprint"})
    assert here.fingerprint == sha256_hex(canonical_json(parts))
    assert here.hardware.cpu_usable_cores >= 1
    assert here.hardware.memory_bytes > 1e8
    assert here.software.packages["torch"]
    assert len(here.hardware.host_id) == 12


def test_two_captures_of_one_state_are_equal(repository):
    assert capture(repository) == capture(repository)


class TestControlGroups:
    def limits(self, tmp_path, membership):
        write(tmp_path / "membership", membership)
        (tmp_path / "mount").mkdir(exist_ok=True)
        return cgroup_limits(tmp_path / "membership", tmp_path / "mount")

    def test_no_files_mean_no_limit(self, tmp_path):
        assert cgroup_limits(tmp_path / "absent", tmp_path / "mount") == CgroupLimits(None, None)

    def test_version_2_takes_the_tightest_level(self, tmp_path):
        write(tmp_path / "mount/a/cpu.max", "150000 100000\n")
        write(tmp_path / "mount/a/memory.max", "max\n")
        write(tmp_path / "mount/a/b/cpu.max", "max 100000\n")
        write(tmp_path / "mount/a/b/memory.max", "1073741824\n")
        assert self.limits(tmp_path, "0::/a/b\n") == CgroupLimits(1.5, 1 << 30)

    def test_version_2_inside_a_container_is_read_at_the_mount(self, tmp_path):
        write(tmp_path / "mount/cpu.max", "200000 100000\n")
        assert self.limits(tmp_path, "0::/../outside\n") == CgroupLimits(2.0, None)

    def test_version_1_knows_quota_period_and_the_number_for_no_limit(self, tmp_path):
        write(tmp_path / "mount/cpu,cpuacct/job/cpu.cfs_quota_us", "50000\n")
        write(tmp_path / "mount/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
        write(tmp_path / "mount/memory/memory.limit_in_bytes", "9223372036854771712\n")
        assert self.limits(tmp_path, "4:memory:/\n3:cpu,cpuacct:/job\n") == CgroupLimits(0.5, None)
        write(tmp_path / "mount/memory/memory.limit_in_bytes", "2147483648\n")
        assert self.limits(tmp_path, "4:memory:/\n") == CgroupLimits(None, 2 << 30)

    def test_version_1_without_quota_has_no_limit(self, tmp_path):
        write(tmp_path / "mount/cpu/cpu.cfs_quota_us", "-1\n")
        write(tmp_path / "mount/cpu/cpu.cfs_period_us", "100000\n")
        assert self.limits(tmp_path, "3:cpu:/\n") == CgroupLimits(None, None)

    def test_limits_bound_threads_and_memory(self, here):
        hardware = here.hardware.model_copy(
            update={"cpu_usable_cores": 8, "cgroup_cpu_cores": 2.5, "memory_bytes": 100}
        )
        assert usable_threads(hardware) == 2
        assert usable_threads(hardware.model_copy(update={"cgroup_cpu_cores": 0.5})) == 1
        assert usable_threads(hardware.model_copy(update={"cgroup_cpu_cores": None})) == 8
        assert usable_memory_bytes(hardware.model_copy(update={"cgroup_memory_bytes": 40})) == 40
        assert usable_memory_bytes(hardware.model_copy(update={"cgroup_memory_bytes": None})) == 100


def test_a_processor_without_a_name_is_known_by_its_architecture(tmp_path):
    write(tmp_path / "x86", "processor: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    write(tmp_path / "arm", "processor: 0\nCPU part: 0xd0c\n")
    assert cpu_model(tmp_path / "x86") == "Some CPU @ 2 GHz"
    assert cpu_model(tmp_path / "arm") == cpu_model(tmp_path / "absent") != ""


class TestSource:
    def test_a_clean_tree_has_a_commit_and_no_difference(self, repository):
        source = capture_source(repository)
        assert len(source.commit) == 40
        assert source.dirty is False
        assert source.diff_sha256 is None
        assert source.lock_sha256 is not None

    @pytest.mark.no_cover
    def test_changed_and_untracked_files_change_the_hash(self, repository):
        write(repository / "code.py", "x = 2\n")
        changed = capture_source(repository)
        write(repository / "new.py", "y = 1\n")
        added = capture_source(repository)
        write(repository / "new.py", "y = 2\n")
        assert changed.dirty
        assert len({changed.diff_sha256, added.diff_sha256, capture_source(repository).diff_sha256}) == 3

    def test_the_runs_own_folder_does_not_make_the_tree_dirty(self, repository):
        write(repository / "paper" / "ledger.jsonl", "{}")
        assert capture_source(repository).dirty
        assert not capture_source(repository, output=repository / "paper").dirty

    def test_outside_a_repository_nothing_is_guessed(self, tmp_path):
        source = capture_source(tmp_path)
        assert (source.commit, source.dirty, source.lock_sha256) == (None, None, None)


class TestAnArchiveOfACommit:
    """What `git archive` makes of a commit, on a machine without git."""

    @pytest.fixture
    def archived(self, repository, tmp_path):
        root = Path(__file__).resolve().parents[2]
        for name in (STAMP, ".gitattributes", ".gitignore"):
            write(repository / name, (root / name).read_text())
        write(repository / "tools" / "run.sh", "exit 0\n")
        write(repository / "tools-b", "sorted between a file and a folder\n")
        (repository / "tools" / "run.sh").chmod(0o755)
        (repository / "link").symlink_to("code.py")
        git(repository, "add", ".")
        git(repository, "commit", "-q", "-m", "more")
        folder = tmp_path / "unpacked"
        folder.mkdir()
        git(repository, "archive", "--output", tmp_path / "tree.tar", "HEAD")
        with tarfile.open(tmp_path / "tree.tar") as archive:
            archive.extractall(folder, filter="data")
        return folder

    def test_it_is_known_as_the_commit_that_a_clone_would_be(self, archived, repository):
        assert capture_source(archived) == capture_source(repository)
        assert capture_source(archived).dirty is False

    def test_what_git_ignores_and_the_runs_own_folder_do_not_make_it_dirty(self, archived):
        for name in ("src/__pycache__/x.pyc", "results/smoke/ledger.jsonl", ".venv/bin/python", ".coverage.1", "p/l"):
            write(archived / name, "x")
        (archived / "empty").mkdir()
        assert capture_source(archived, output=archived / "p").dirty is False

    @pytest.mark.no_cover
    @pytest.mark.parametrize("name", ["code.py", "new.py", "tools/results/new.py", STAMP])
    def test_a_changed_or_added_file_makes_it_dirty(self, archived, name):
        write(archived / name, f"commit {'1' * 40}\ntree {'2' * 40}\n")
        changed = capture_source(archived)
        assert changed.dirty
        assert changed.diff_sha256 is not None
        assert changed.commit == ("1" * 40 if name == STAMP else read_stamp(archived).commit)

    def test_a_file_that_may_be_run_no_more_makes_it_dirty(self, archived):
        (archived / "tools" / "run.sh").chmod(0o644)
        assert capture_source(archived).dirty

    def test_a_stamp_that_was_not_filled_in_tells_nothing(self, archived):
        shutil.copyfile(Path(__file__).resolve().parents[2] / STAMP, archived / STAMP)
        assert (read_stamp(archived), capture_source(archived).commit) == (None, None)


def test_a_commit_is_the_repositorys_own_if_it_lies_behind_the_present_one(repository):
    first = capture_source(repository).commit
    git(repository, "commit", "-q", "--allow-empty", "-m", "later")
    later = capture_source(repository).commit
    git(repository, "reset", "-q", "--hard", first)
    assert has_commit(first, repository)
    assert not has_commit(later, repository)
    assert not has_commit("0" * 40, repository)


class TestGate:
    @pytest.fixture(autouse=True)
    def _idle(self, monkeypatch):
        monkeypatch.setattr(environment.psutil, "cpu_percent", lambda interval: 3.0 * interval)

    def software(self, here, **packages):
        return here.model_copy(update={"software": here.software.model_copy(update={"packages": packages})})

    def captured(self, here, repository, **packages):
        return self.software(here, **packages).model_copy(update={"source": capture_source(repository)})

    def test_a_clean_idle_machine_with_the_pinned_versions_passes(self, here, repository):
        assert gate(self.captured(here, repository, numpy="1.0.0+local"), "cpu", repository) == ()

    def test_every_reason_is_listed(self, here, repository, monkeypatch):
        monkeypatch.setattr(environment.psutil, "cpu_percent", lambda interval: 80.0 * interval)
        write(repository / "code.py", "x = 2\n")
        reasons = gate(self.captured(here, repository, numpy="1.0.1"), "cpu", repository)
        assert [reason.split()[0:2] for reason in reasons] == [["the", "git"], ["numpy", "is"], ["the", "processor"]]

    def test_versions_of_a_host_that_cannot_be_changed_pass_as_a_whole(self, here, repository):
        write(repository / "requirements" / "hosts" / "image.txt", "numpy==2.0.0\npydantic==3.0.0\n")
        git(repository, "add", ".")
        git(repository, "commit", "-q", "-m", "a host")
        assert gate(self.captured(here, repository, numpy="2.0.0+cu1", pydantic="3.0.0"), "cpu", repository) == ()
        reasons = gate(self.captured(here, repository, numpy="2.0.0", pydantic="999", torch="1"), "cpu", repository)
        assert len(reasons) == 1

    def test_the_nearest_set_of_locks_is_named(self, here, repository):
        write(repository / "requirements" / "hosts" / "image.txt", "numpy==2.0.0\npydantic==3.0.0\ntorch==1.0\n")
        git(repository, "add", ".")
        git(repository, "commit", "-q", "-m", "a host")
        found = self.captured(here, repository, numpy="2.0.0", pydantic="3.0.1", torch="1.0")
        assert gate(found, "cpu", repository) == (
            "pydantic is 3.0.1, requirements/hosts/image.txt pins 3.0.0; install from there",
        )

    def test_a_tree_without_a_commit_is_no_basis(self, here, tmp_path):
        assert "no git repository" in gate(self.captured(here, tmp_path), "cpu", tmp_path)[0]

    def test_a_gpu_run_without_a_driver_is_refused(self, here, repository):
        if here.hardware.gpus:
            pytest.skip("this machine has an NVIDIA driver")
        assert "does not answer" in gate(self.captured(here, repository), "cuda", repository)[0]


def test_differences_name_the_field_and_both_values(here):
    other = here.model_copy(update={"software": here.software.model_copy(update={"python": "0.1"})})
    assert differences(here, here) == ()
    assert differences(here, other) == (f"software.python: {here.software.python!r} -> '0.1'",)


def test_the_environment_names_no_host(here):
    names = {Path("/etc/hostname").read_text().strip()} if Path("/etc/hostname").exists() else set()
    assert not any(name and name in here.model_dump_json() for name in names if len(name) > 3)
