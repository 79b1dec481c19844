import dataclasses
import json

import pytest
from graphwright.backends import host
from graphwright.backends.presets import PRESETS
from graphwright.backends.target import Target, all_targets, host_target, resolve_target
from graphwright.ir.errors import TargetError

SKYLAKE = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R)  Platinum
flags\t\t: fpu sse pni ssse3 sse4_1 sse4_2 popcnt avx avx2 fma f16c bmi1 bmi2 abm movbe avx512f avx512bw \
avx512cd avx512dq avx512vl

processor\t: 1
vendor_id\t: GenuineIntel
flags\t\t: fpu
"""
CORTEX = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""


def test_cpuinfo_of_x86_gives_llvm_features_and_the_newest_cpu_that_has_them():
    entries = host.parse_cpuinfo(SKYLAKE)
    features = host.features_of(entries)
    assert {"sse3", "sse4.1", "bmi", "lzcnt", "avx512f"} <= features
    assert host.choose_x86_cpu(features, entries["vendor_id"]) == "skylake-avx512"


def test_a_feature_hidden_by_a_hypervisor_lowers_the_cpu_name():
    features = host.features_of(host.parse_cpuinfo(SKYLAKE))
    assert host.choose_x86_cpu(features - {"avx512dq"}, "GenuineIntel") == "haswell"
    assert host.choose_x86_cpu(features - {"avx512dq"}, "AuthenticAMD") == "znver2"
    assert host.choose_x86_cpu(features - {"avx2"}, "GenuineIntel") == "x86-64-v2"
    assert host.choose_x86_cpu(frozenset()) == "x86-64"


def test_cpuinfo_of_arm_is_read_as_an_arm_host(monkeypatch):
    monkeypatch.setattr(host, "host_arch", lambda: "aarch64")
    monkeypatch.setattr(host, "_cpuinfo", lambda: host.parse_cpuinfo(CORTEX))
    monkeypatch.setattr(host, "host_features", lambda: host.features_of(host.parse_cpuinfo(CORTEX)))
    described = host.describe_host()
    assert described["cpu"] == "cortex-a76"
    assert described["features"] == ("neon", "dotprod", "fullfp16")
    assert (described["vector_bits"], described["vector_registers"]) == (128, 32)
    assert resolve_target("arm").cpu == "cortex-a76"
    assert resolve_target("arm").runs_here
    assert resolve_target("x86").cpu == "x86-64-v3"
    assert "it needs x86_64" in resolve_target("x86").why_not_here()


def test_vectors_are_512_bits_wide_only_with_all_of_avx512(monkeypatch):
    entries = host.parse_cpuinfo(SKYLAKE)
    features = host.features_of(entries)
    monkeypatch.setattr(host, "host_arch", lambda: "x86_64")
    monkeypatch.setattr(host, "_cpuinfo", lambda: entries)
    for missing, bits, registers in (("", 512, 32), ("avx512vl", 256, 16), ("avx2", 512, 32)):
        monkeypatch.setattr(host, "host_features", lambda missing=missing: features - {missing})
        described = host.describe_host()
        assert (described["vector_bits"], described["vector_registers"]) == (bits, registers), missing
    monkeypatch.setattr(host, "host_features", lambda: features - {"avx2", "avx512f"})
    assert host.describe_host()["vector_bits"] == 128


def test_caches_come_from_sysfs_and_default_without_it(tmp_path):
    for index, (level, kind, size) in enumerate(
        [(1, "Data", "48K"), (1, "Instruction", "64K"), (2, "Unified", "2M"), (3, "Unified", "0K")]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{text}\n")
    assert host.host_caches(tmp_path) == {1: 48 << 10, 2: 2 << 20, 3: 0}
    assert host.host_caches(tmp_path / "nothing") == {1: 32 << 10, 2: 512 << 10, 3: 0}


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "400000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4.0,
        ),
        (
            {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            None,
        ),
        ({}, None),
    ],
)
def test_container_limits_are_read_in_both_forms(monkeypatch, files, quota):
    monkeypatch.setattr(host, "_read", lambda path: files.get(str(path), ""))
    assert host._cgroup_quota() == quota


def test_hyper_threads_of_a_core_count_once(monkeypatch):
    topology = {0: "0", 1: "0", 2: "1", 3: "1"}
    monkeypatch.setattr(host, "_logical_cores", lambda: [0, 1, 2, 3])

    def read(path):
        if str(path).endswith("core_id"):
            return topology[int(path.parts[-3].removeprefix("cpu"))]
        return "0" if str(path).endswith("physical_package_id") else ""

    monkeypatch.setattr(host, "_read", read)
    assert host.usable_cores() == 2
    assert host.logical_cores() == 4


def test_the_host_runs_here_and_names_a_cpu_that_llvm_knows():
    target = host_target()
    assert target.runs_here
    assert target.cores >= 1
    assert target.l1_bytes >= 8 << 10
    from graphwright.backends.tvm_import import import_tvm

    tvm = import_tvm()
    assert dict(tvm.target.Target(target.to_tvm()).attrs)["mcpu"] == target.cpu


def test_every_preset_is_accepted_by_tvm_and_has_features_that_its_cpu_has():
    from graphwright.backends.tvm_import import import_tvm

    tvm = import_tvm()
    from tvm.target import codegen

    for name in PRESETS:
        target = resolve_target(name)
        built = tvm.target.Target(target.to_tvm())
        assert str(built.kind) == target.kind
        if target.kind == "llvm":
            bare = tvm.target.Target({"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu})
            assert codegen.llvm_is_valid_cpu(target.cpu, target.triple), name
            known = {str(feature) for feature in codegen.llvm_get_cpu_features(bare)}
            extra = {"dotprod"} if target.cpu == "generic" else set()
            assert set(target.features) <= known | extra, name


def test_targets_survive_json():
    for target in all_targets().values():
        assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


@pytest.mark.parametrize(
    ("data", "said"),
    [({"name": "x"}, "missing"), ({"name": "x", "kind": "llvm", "triple": "t", "cpu": "c", "gpu": 1}, "gpu")],
)
def test_a_broken_description_is_refused(data, said):
    with pytest.raises(TargetError, match=said):
        Target.from_json(data)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("znver33", "znver3"),
        ("cortex-a67", "cortex-a76"),
        ("x68", "x86"),
        ("raspberry-pi", "raspberry-pi-"),
        ("quantum", "graphwright targets"),
        ("", "graphwright targets"),
    ],
)
def test_unknown_names_get_one_line_with_the_nearest_ones(name, hint):
    with pytest.raises(TargetError) as caught:
        resolve_target(name)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_may_be_spelt_freely_and_targets_pass_through():
    assert resolve_target(" Cortex_A76 ").cpu == "cortex-a76"
    assert resolve_target("sm_86").name == "rtx-3090"
    target = resolve_target("arm")
    assert resolve_target(target) is target
    with pytest.raises(TargetError, match="not int"):
        resolve_target(3)


def test_a_missing_feature_is_named(monkeypatch):
    monkeypatch.setattr(host, "host_arch", lambda: "x86_64")
    monkeypatch.setattr(host, "host_features", lambda: frozenset(PRESETS["x86-64-v3"]["features"]) - {"fma"})
    reason = resolve_target("x86-64-v3").why_not_here()
    assert reason == "this CPU lacks fma"
    assert not resolve_target("x86-64-v4").runs_here
    assert resolve_target("x86-64-v2").runs_here


def test_families_and_features():
    cuda, arm = resolve_target("cuda"), resolve_target("raspberry-pi-5")
    assert (cuda.family, cuda.device, cuda.arch) == ("cuda", "cuda", "x86_64")
    assert (arm.family, arm.device, arm.arch) == ("arm", "cpu", "aarch64")
    assert arm.has("neon", "dotprod")
    assert not arm.has("neon", "i8mm")
    assert dataclasses.replace(arm, cores=2).to_tvm()["num-cores"] == 2


@pytest.mark.parametrize(
    ("found", "arch", "said"),
    [
        ((9, 0), "sm_90", None),
        ((9, 0), "sm_90a", None),
        ((8, 6), "sm_80", None),
        ((8, 0), "sm_86", "this machine's GPU is sm_80, the code is for sm_86"),
        ((10, 0), "sm_90", "this machine's GPU is sm_100, the code is for sm_90"),
        ((10, 0), "sm_100", None),
        ("this machine has no NVIDIA driver", "sm_90", "this machine has no NVIDIA driver"),
    ],
)
def test_a_gpu_must_be_of_the_right_generation(monkeypatch, found, arch, said):
    monkeypatch.setattr(host, "cuda_capability", lambda: found)
    assert host.cuda_problem(arch) == said
